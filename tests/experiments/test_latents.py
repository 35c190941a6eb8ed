"""The signal-to-noise ratio of latents: kept beside the videos where it is asked for, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from eval.latency import take
from eval.latent_error import CAP_DB, latent_snr_db
from experiments.job.errors import RunFailed
from experiments.records import RecordStore, new_record, store_of
from experiments.run.latents import has_latents, read_latents
from experiments.run.runner import Runner

ONE = ("method=every_k", "num_prompts=1", "latency_pairs=0")
WITH = ("metrics=[psnr,latent_snr]",)


@pytest.fixture
def asked(small_job):
    """A job that asks for it."""
    return small_job(*ONE, *WITH)


def reference_of(job):
    return store_of(job).find(new_record(job, job.baseline_name, job.baseline_method, job.prompts[0]).key)


def test_latents_of_both_videos_are_kept_and_compared(asked):
    (record,) = Runner(asked).run()
    store, reference = store_of(asked), reference_of(asked)
    kept = [load_file(store.latents_path(each.key))["latents"] for each in (record, reference)]
    assert all(each.dtype == torch.float32 and each.shape[1] == 12 for each in kept)  # 48 frames, 4 a latent one
    assert record.metrics["latent_snr"] == latent_snr_db(*kept)
    assert 0 < record.metrics["latent_snr"] < CAP_DB
    assert (reference.metrics, record.notes) == ({}, {})
    assert Runner(asked).plan().finished == 1


def test_they_are_those_that_the_frames_were_decoded_from(asked):
    (record,) = Runner(asked).run()
    runner, options = Runner(asked), asked.generation_options
    again = take(runner.model, asked.prompts[0], 48, asked.method, asked.seed, "cpu", True, **options)
    assert torch.equal(again.latents, read_latents(store_of(asked), record))
    assert take(runner.model, asked.prompts[0], 24, asked.method, asked.seed, "cpu", **options).latents is None


def test_a_video_that_is_the_same_has_the_most(small_job):
    (record,) = Runner(small_job("method=every_k", "reuse.every=1", *ONE[1:], *WITH)).run()
    assert record.metrics == {"psnr": "inf", "latent_snr": CAP_DB}


def test_nothing_is_kept_where_it_is_not_asked_for(small_job):
    job = small_job(*ONE)
    (record,) = Runner(job).run()
    assert not has_latents(store_of(job), record)
    assert not list(job.output_dir.rglob("*.safetensors"))


def test_a_finished_video_without_latents_says_so_once_and_force_makes_both_again(small_job, asked):
    Runner(small_job(*ONE)).run()
    assert Runner(asked).plan().lacking == ("latent_snr",)
    (record,) = Runner(asked).run()
    assert record.metrics["latent_snr"] is None
    assert record.notes == {"latent_snr": "made without latents; force=true makes it again"}
    assert Runner(asked).plan().finished == 1
    forced = replace(asked, force=True)
    assert Runner(forced).plan().references_to_make == asked.prompts
    (again,) = Runner(forced).run()
    assert (again.metrics["latent_snr"] > 0, again.notes) == (True, {})
    assert has_latents(store_of(asked), reference_of(asked))


def test_a_method_that_comes_later_has_its_reference_made_again(small_job, asked):
    Runner(small_job("method=vanilla", *ONE[1:])).run()
    assert Runner(asked).plan().references_to_make == asked.prompts
    (record,) = Runner(asked).run()
    assert record.metrics["latent_snr"] > 0
    assert Runner(small_job("method=vanilla", *ONE[1:], *WITH)).plan().finished == 1


def test_a_reference_without_latents_is_told(small_job, asked):
    """Of a finished video with latents, whose metric other code measured."""
    (record,) = Runner(asked).run()
    Runner(replace(small_job("method=vanilla", *ONE[1:]), force=True)).run()
    record.metrics.pop("latent_snr")
    store_of(asked).amend(record)
    (record,) = Runner(asked).run()
    told = "vanilla's video was made without latents; force=true makes both again"
    assert record.notes == {"latent_snr": told}


def test_latents_of_a_video_made_again_without_are_gone(small_job, asked):
    (record,) = Runner(asked).run()
    (again,) = Runner(replace(small_job(*ONE), force=True)).run()
    assert again.key == record.key
    assert not store_of(asked).latents_path(record.key).exists()
    assert store_of(asked).damage(again) == []


def test_lost_latents_have_the_video_made_again(asked):
    (record,) = Runner(asked).run()
    store_of(asked).latents_path(record.key).unlink()
    assert Runner(asked).plan().to_make == asked.prompts
    assert Runner(asked).run()[0].metrics == record.metrics


@pytest.mark.parametrize("whose", ["its own", "its reference's"])
def test_damaged_latents_are_told_with_what_to_do(whose, asked):
    (record,) = Runner(asked).run()
    store: RecordStore = store_of(asked)
    damaged = record if whose == "its own" else reference_of(asked)
    store.latents_path(damaged.key).write_bytes(b"damage")
    assert store.damage(damaged) == ["latents.safetensors is not what was written"]
    value = record.metrics.pop("latent_snr")
    store.amend(record)
    with pytest.raises(RunFailed, match=r"latents\.safetensors.*; force=true makes the video again$"):
        Runner(asked).run()
    (again,) = Runner(replace(asked, force=True)).run()
    assert again.metrics["latent_snr"] == value
    assert store.damage(reference_of(asked)) == []


def test_it_is_measured_later_from_what_was_kept(asked, monkeypatch):
    (record,) = Runner(asked).run()
    value = record.metrics.pop("latent_snr")
    store_of(asked).amend(record)
    monkeypatch.setattr("eval.latency.generate", None)  # no video can be made
    assert Runner(asked).plan().lacking == ("latent_snr",)
    assert Runner(asked).run()[0].metrics["latent_snr"] == value


def test_random_weights_keep_none(small_job):
    job = small_job(*ONE, *WITH, "weights=random")
    (record,) = Runner(job).run()
    assert record.metrics == {"psnr": None, "latent_snr": None}
    assert not has_latents(store_of(job), record)
    assert Runner(job).plan().finished == 1

"""The dry run: the paper's figures without weights, runs replayed exactly, and what is said of those that need them."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console

from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.job.method import make_method
from experiments.job.paths import ROOT
from experiments.records import Record, RecordStore
from experiments.run.dry_run import Count, DryRun, count, dry_run, read_decisions
from experiments.run.runner import Runner
from flowcache.method import VANILLA, Method
from flowcache.models.magi import config as magi
from flowcache.models.magi import flops as magi_flops
from flowcache.models.skyreels import config as skyreels
from flowcache.models.skyreels import flops as skyreels_flops
from flowcache.reuse.replay import Replay
from flowcache.sampler import sample
from tests.experiments.conftest import SMALL

PFLOP = 1e15
MAGI_TOKENS, SKYREELS_TOKENS = 6 * 45 * 45, 5 * 34 * 60  # a chunk's, at 720 x 720 and 544 x 960 pixels
REUSING = ["reuse.threshold=0.5", "reuse.warmup_steps=1"]


@cache
def paper_count(model: str, method: str) -> tuple[Count, float]:
    """A method in the paper's setting, and the seconds of one core that counting it took."""
    config = compose_config([f"model={model}", "setting=paper", f"method={method}", "device=meta"])
    started = time.process_time()
    return count(config, make_method(config)), time.process_time() - started


def printed_dry_run(*overrides: str) -> tuple[DryRun, str]:
    """A dry run and what it prints."""
    console = Console(file=io.StringIO(), width=160)
    outcome = dry_run(compose_config(["device=meta", *overrides]), console)
    return outcome, console.file.getvalue()


# The paper's figures, by hand count: section 5 of its facts. Executed, and in its accounting.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "method", "kinds", "executed", "charged", "tolerance"),
    [
        ("skyreels", "vanilla", {"denoise", "context"}, 165.2, 113.6, 5e-3),
        ("skyreels", "vanilla_causal", {"denoise", "context"}, 113.6, 113.6, 5e-3),
        ("skyreels", "vanilla_kv", {"denoise"}, 79.7, 79.7, 5e-3),
        ("magi", "vanilla", {"denoise", "near_clean"}, 306, 306, 1e-2),
    ],
)
def test_vanilla_in_the_papers_setting_is_the_hand_count(model, method, kinds, executed, charged, tolerance):
    counted, seconds = paper_count(model, method)
    by_kind = counted.trace.flops_by_kind()
    assert sum(by_kind[kind] for kind in kinds) == pytest.approx(executed * PFLOP, rel=tolerance)
    assert counted.paper_flops == pytest.approx(charged * PFLOP, rel=tolerance)
    apart = by_kind.keys() - kinds
    assert apart == {"caption", "time"} | {"skyreels": set(), "magi": {"refresh"}}[model] | (
        {"refresh", "prefix"} if method == "vanilla_kv" else set()
    )
    assert sum(by_kind[kind] for kind in apart) < 0.016 * executed * PFLOP
    assert counted.trace.computed_fraction == 1
    assert seconds < 60


@pytest.mark.slow
def test_every_k_in_the_papers_setting_is_its_share_of_steps():
    """Of 50 steps 27 after a warm-up of 4; of 64 steps 35 after one of 5, among the near-clean 16 of them 9."""
    counted, seconds = paper_count("skyreels", "every_k")
    counter = skyreels_flops.FlopCounter(skyreels.NETWORKS["1.3B"], SKYREELS_TOKENS, 512)
    positions = (0, 1, 2, 3, 4, 1, 2, 3, 4)  # the second window begins with a given chunk
    denoise = sum(27 * 2 * counter.chunk("denoise", 0, (p + 1) * SKYREELS_TOKENS).flops for p in positions)
    assert counted.trace.flops_by_kind()["denoise"] == counted.paper_flops == denoise
    assert counted.trace.flops_by_kind()["reuse"] == len(positions) * 23 * 2 * counter.reuse(0).flops
    assert seconds < 60

    counted, seconds = paper_count("magi", "every_k")
    counter = magi_flops.FlopCounter(magi.NETWORKS["4.5B"], MAGI_TOKENS)
    denoise = sum(35 * counter.chunk("denoise", c, (c + 1) * MAGI_TOKENS, 102).flops for c in range(10))
    near_clean = 10 * 9 * counter.chunk("near_clean", 0, MAGI_TOKENS, 102).flops
    assert counted.paper_flops == denoise + near_clean
    assert seconds < 60


def test_on_magi_the_three_vanillas_are_one():
    short = ["model=magi", "setting=paper", "setting.num_steps=4", "setting.num_frames=48"]
    traces = [count(compose_config(short), Method(attention=a)).trace for a in ("native", "causal", "cached")]
    assert traces[0] == traces[1] == traces[2]


# Recorded runs of the embedded model, replayed.


def recorded_run(job: Job) -> tuple[Record, Path]:
    (record,) = Runner(job).run()
    return record, RecordStore(job.output_dir).trace_path(record.key)


def final_latents(job: Job, method: Method) -> torch.Tensor:
    inputs = (job.prompts[0], job.num_frames, method, job.seed)
    generation = job.load_model().generation(*inputs, **job.generation_options)
    return torch.cat([latent for _, latent in sample(generation)], dim=1)


def test_replaying_a_recorded_run_gives_its_latents_bit_for_bit(small_job):
    job = small_job("num_prompts=1", *REUSING)
    record, path = recorded_run(job)
    assert record.computed_fraction < 1
    replayed = replace(job.method, reuse=read_decisions(path))
    expected = final_latents(job, job.method)
    assert torch.equal(final_latents(job, replayed), expected)
    assert not torch.equal(final_latents(job, VANILLA), expected)


@pytest.mark.parametrize("overrides", [["method=vanilla"], ["method=every_k", "reuse.warmup_steps=1"], REUSING])
def test_a_dry_run_counts_exactly_what_the_run_did(small_job, overrides):
    job = small_job("num_prompts=1", *overrides)
    record, path = recorded_run(job)
    caption_tokens = int(job.load_model().text_encoder(job.prompts[0])[1].sum())
    dry = [*SMALL, *overrides, f"model.on_meta.caption_tokens={caption_tokens}"]
    outcome, _ = printed_dry_run(*dry, *([f"replay={path}"] if overrides is REUSING else []))
    trace = outcome.method.trace
    assert trace.flops_by_kind() == record.flops_by_kind
    assert trace.flops_by_part() == record.flops_by_part
    assert trace.computed_fraction == record.computed_fraction
    assert trace.kv_bytes_allocated == record.kv_bytes_allocated
    assert outcome.vanilla.trace.flops == record.baseline_flops


# What it says.


def test_a_method_that_needs_weights_says_so_beside_the_published_share(small_job):
    outcome, text = printed_dry_run(*SMALL, *REUSING)
    assert outcome.looks_at == "embedded_latent distances"
    assert outcome.method.trace.computed_fraction == 1
    assert "flowcache_fast decides by embedded_latent distances, which need weights" in text
    assert "16 of 16 chunk steps computed" in text
    assert "executed, at most" in text
    reported = next(line for line in text.splitlines() if "reported by the paper" in line)
    assert [cell.strip() for cell in reported.strip("│ ").split("│")][1:] == ["140 PFLOPs", "0.458"]

    _, path = recorded_run(small_job("num_prompts=1", *REUSING))
    outcome, replayed = printed_dry_run(*SMALL, *REUSING, f"replay={path}")
    assert outcome.method.trace.computed_fraction < 1
    assert "need weights" not in replayed
    assert "at most" not in replayed
    assert "Decisions are those recorded in" in replayed
    assert outcome.method.trace.flops < outcome.vanilla.trace.flops


def test_a_method_that_decides_alone_prints_its_figures():
    outcome, text = printed_dry_run(*SMALL, "method=every_k", "reuse.warmup_steps=1")
    assert "need weights" not in text
    assert "reported by the paper" not in text  # the paper has no such row
    executed = next(line for line in text.splitlines() if "executed" in line)
    share = outcome.method.trace.flops / outcome.vanilla.trace.flops
    assert [cell.strip() for cell in executed.strip("│ ").split("│")][1:] == [
        f"{outcome.method.trace.flops / 1e9:.4g} GFLOPs",
        f"{share:.3f}",
    ]
    assert "finished chunks, once more when clean" in text
    assert "as configured in" in text


def test_run_py_needs_neither_prompts_nor_weights_and_leaves_nothing_behind(tmp_path):
    arguments = ["model=magi", "setting=paper", "method=vanilla", "device=meta", "setting.num_frames=24"]
    command = [sys.executable, str(ROOT / "run.py"), *arguments, "setting.num_steps=4", f"output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "in the paper's accounting" in done.stdout
    assert "size 4.5B, caption_tokens 100" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"hydra"}


# What it refuses.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["setting.num_steps=62"], "choose a multiple of 4"),
        (["setting.num_frames=50"], "try num_frames=48"),
        (["seed=one"], "seed='one' must be a whole number"),
        (["setting=paper", "model.on_meta.size=5B"], "there are 4.5B, 24B"),
        (["setting=paper", "model=skyreels", "model.on_meta.size=4.5B"], "there are 1.3B, 14B"),
        (["model.on_meta.caption_tokens=0"], "caption_tokens=0 must be a whole number of at least 1"),
        (["checkpoint=nowhere"], "no MAGI-1 configuration at"),
        (["checkpoint=nowhere", "model=skyreels"], "no configuration at"),
        (["replay=nowhere.parquet"], "replay=.*nowhere.parquet is not a trace of a run"),
    ],
)
def test_bad_requests_are_one_clear_message(overrides, message):
    with pytest.raises(BadInput, match=message):
        dry_run(compose_config(["device=meta", *overrides]), Console(file=io.StringIO()))


ENTRY = {
    "row": 0,
    "chunk": 0,
    "step": 0,
    "t": 0.0,
    "action": "compute",
    "distance": None,
    "accumulated": None,
    "flops": 1,
    "kv_tokens": 1,
}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"row": 0, "chunk": 0}], "is not a trace of a run"),
        ([ENTRY, ENTRY | {"row": 1, "action": "held", "flops": 0}], r"holds chunks back \(published TeaCache\)"),
        ([ENTRY, ENTRY | {"row": 1, "action": "forecast"}], "guidance branches that decide apart"),
        ([ENTRY, ENTRY | {"row": 1, "action": "reuse"}], "guidance branches that decide apart"),
        ([ENTRY, ENTRY | {"row": 1}], "have 2 rows and this generation"),
    ],
    ids=["columns", "held", "branches, forecast", "branches", "another generation"],
)
def test_recordings_that_cannot_be_replayed_are_refused(tmp_path, entries, message):
    path = tmp_path / "trace.parquet"
    pd.DataFrame(entries).to_parquet(path)
    with pytest.raises(BadInput, match=message):
        dry_run(compose_config([*SMALL, "device=meta", f"replay={path}"]), Console(file=io.StringIO()))


def test_recordings_of_before_repeats_were_recorded_have_none(tmp_path):
    skipped = {"row": 1, "step": 1, "action": "reuse", "flops": 0}
    pd.DataFrame([ENTRY, ENTRY | skipped]).to_parquet(tmp_path / "old.parquet")
    assert read_decisions(tmp_path / "old.parquet") == Replay(computed=[[0], []])
    entries = [ENTRY | {"repeated": False}, ENTRY | skipped | {"repeated": True}]
    pd.DataFrame(entries).to_parquet(tmp_path / "new.parquet")
    assert read_decisions(tmp_path / "new.parquet") == Replay(computed=[[0], []], repeated=[[], [0]])


@pytest.mark.parametrize("cut", [False, True])
def test_a_file_that_is_no_parquet_or_is_cut_is_refused(tmp_path, cut):
    if cut:
        pd.DataFrame([ENTRY]).to_parquet(tmp_path / "trace.parquet")
        (tmp_path / "trace.parquet").write_bytes((tmp_path / "trace.parquet").read_bytes()[:-50])
    else:
        (tmp_path / "trace.parquet").write_text("row,chunk\n0,0\n", encoding="utf-8")
    with pytest.raises(BadInput, match="is not a trace of a run, or is damaged"):
        read_decisions(tmp_path / "trace.parquet")

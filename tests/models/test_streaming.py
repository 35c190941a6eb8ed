"""Frames of a chunk are given out as soon as it is finished, before any later row runs; of every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from eval.latency import take
from experiments.job.paths import ROOT
from flowcache import generate
from flowcache.models.base import VideoModel
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from flowcache.trace import Trace
from tests.methods import vanilla
from tests.models.wan_tiny import tiny_wan

EMBEDDED = ROOT / "experiments" / "embedded"
PROMPT = "a red circle moving left on a grey background"
SMALL = {"height": 32, "width": 32}


def magi() -> tuple[VideoModel, torch.nn.Module]:
    model = Magi.from_pretrained(EMBEDDED / "magi")
    return model, model.vae.decoder


def skyreels() -> tuple[VideoModel, torch.nn.Module]:
    model = SkyReels.from_pretrained(EMBEDDED / "skyreels")
    return model, model.vae.vae.decoder


def wan() -> tuple[VideoModel, torch.nn.Module]:
    model = tiny_wan(steps=(1000, 500))
    return model, model.vae.vae.decoder


# The model and its decoder, the video, its chunks' frames, and the latent frames of the first chunk.
FAMILIES = pytest.mark.parametrize(
    ("load", "num_frames", "options", "counts", "latents"),
    [
        (magi, 96, {"num_steps": 8}, [24] * 4, 6),
        (skyreels, 97 + 80, {"num_steps": 4, "ar_step": 2}, [17] + [20] * 8, 5),  # two windows
        (skyreels, 97, {"num_steps": 4, "ar_step": 0}, [17] + [20] * 4, 5),  # all chunks finish in one row
        (wan, 45, {}, [9, 12, 12, 12], 3),
        (wan, 45, {"window_frames": 9, "sink_frames": 3, "rolling": True}, [9, 12, 12, 12], 3),
        (wan, 37, {"first_frame_alone": True}, [1, 12, 12, 12], 1),
    ],
    ids=["magi", "skyreels", "skyreels together", "wan", "wan rolling", "wan first frame alone"],
)


@FAMILIES
def test_a_chunk_is_given_out_when_it_is_finished(
    load: Callable[[], tuple[VideoModel, torch.nn.Module]],
    num_frames: int,
    options: dict[str, Any],
    counts: list[int],
    latents: int,
):
    model, decoder = load()
    trace, decoded, given = Trace(), [], []
    hook = decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0].shape[2]))
    for frames in generate(model, PROMPT, num_frames, vanilla(), 0, trace, **SMALL | options):
        given.append((len(frames), trace.entries[-1].row))
        if len(given) == 1:
            assert sum(decoded) == latents  # nothing but the first chunk
    hook.remove()
    assert [number for number, _ in given] == counts
    finished = {entry.chunk: entry.row for entry in trace.entries}  # by chunk, the row of its last step
    assert [row for _, row in given] == [finished[chunk] for chunk in sorted(finished)]
    if options.get("ar_step") != 0:
        assert given[0][1] < trace.entries[-1].row


@pytest.mark.parametrize("load", [magi, skyreels, wan])
def test_the_first_chunk_is_timed_before_the_video_is_whole(load):
    model, _ = load()
    steps = {"num_steps": 4} if load is not wan else {}
    taken = take(model, PROMPT, model.frames_of(4), vanilla(), 0, "cpu", **SMALL | steps)
    assert len(taken.chunk_latency_s) == 4
    assert 0 < taken.chunk_latency_s[0] < taken.chunk_latency_s[1] < taken.latency_s

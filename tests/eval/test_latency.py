"""One timed generation, what repeats say, and what a speed-up is."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from eval.latency import Spread, Take, sections, take
from eval.speedup import speedup
from flowcache.method import Method
from flowcache.trace import Trace
from tests.methods import chunkwise
from tests.models.magi_goldens import small_generation

METHOD = chunkwise(threshold=0.1, warmup_steps=1)


class Slow:
    """A model of three chunks, whose text takes 30 ms and each decoding 20 ms."""

    def generation(self, prompt: str, num_frames: int, method: Method, seed: int, **options: int):
        time.sleep(0.03)
        generation = small_generation(method, seed=seed, **options)

        def decode(chunk: int, latent: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return torch.full((24, 2, 2, 3), chunk, dtype=torch.uint8)

        generation.decode = decode
        return generation


def test_a_take_is_timed_from_the_prompt_to_the_last_frame():
    started = time.perf_counter()
    taken = take(Slow(), "a cat", 72, METHOD, 0, "cpu", num_steps=4)
    wall = time.perf_counter() - started
    assert taken.frames.shape == (72, 2, 2, 3)
    assert taken.frames[[0, 24, 48], 0, 0, 0].tolist() == [0, 1, 2]
    assert len(taken.chunk_latency_s) == 3
    assert np.diff([0.05, *taken.chunk_latency_s]).min() > 0
    assert taken.latency_s == taken.chunk_latency_s[-1] <= wall
    assert set(taken.sections_s) == {"text", "transformer", "policy", "scheduler", "vae"}
    assert taken.sections_s["text"] >= 0.03
    assert taken.sections_s["vae"] >= 0.06
    assert sum(taken.sections_s.values()) <= taken.latency_s
    assert len(taken.trace.entries) == 12
    assert taken.peak_memory_gib is None


@pytest.mark.gpu
def test_on_a_gpu_it_knows_the_peak_of_the_memory():
    class OnGpu(Slow):
        def generation(self, *arguments, **options):
            self.held = torch.zeros(2**28, device="cuda")  # 1 GiB
            return super().generation(*arguments, **options)

    assert take(OnGpu(), "a cat", 72, METHOD, 0, "cuda", num_steps=4).peak_memory_gib >= 1


def made(latency_s: float, **seconds: float) -> Take:
    return Take(np.zeros(0), [latency_s / 2, latency_s], seconds, Trace())


def test_sections_are_medians_with_their_ends_and_what_is_in_none():
    takes = [made(10, vae=1, transformer=8), made(12, vae=2, transformer=9), made(20, vae=3, transformer=6, policy=0.5)]
    assert sections(takes) == {
        "transformer": Spread(8, 6, 9),
        "vae": Spread(2, 1, 3),
        "other": Spread(1, 1, 10.5),
        "policy": Spread(0, 0, 0.5),
    }
    assert list(sections(takes)) == ["transformer", "vae", "other", "policy"]


def test_a_speedup_is_the_median_of_pairs_and_efficiency_what_was_saved_of_it():
    gain = speedup([5, 4, 8] * 2, [10] * 6, [0.5, 0.4, 0.8] * 2)
    assert (gain.median, gain.pairs) == (2, 6)
    assert 1.25 <= gain.low < 2 < gain.high <= 2.5
    assert gain.efficiency == pytest.approx((1, 1, 1))
    few = speedup([5, 4, 8], [10] * 3, [0.5, 0.4, 0.8])
    assert (few.median, few.efficiency[0]) == (2, pytest.approx(1))
    assert all(map(math.isnan, (few.low, few.high, *few.efficiency[1:])))


@pytest.mark.parametrize("pairs", [([1, 2], [1], [1, 1]), ([1], [1], []), ([], [], [])])
def test_a_speedup_needs_pairs(pairs):
    with pytest.raises(ValueError, match="a speed-up needs pairs"):
        speedup(*pairs)

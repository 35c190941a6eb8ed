"""SeaCache's filter: what diffusers' hook makes of single frames, and what it lets through."""

from __future__ import annotations

import pytest
import torch
from diffusers.hooks.sea_cache import _apply_sea_filter

from baselines.sea_cache import SeaCache
from flowcache.reuse.spectrum import POWER, filtered
from tests.methods import method
from tests.models import magi_goldens, skyreels_goldens, wan_goldens


def latent(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 3, rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (6, 10), (5, 7), (1, 4)])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.6, 0.98, 1.0])
def test_it_is_diffusers_filter_of_every_frame_by_itself(rows, columns, noise):
    """An axis of one frame has one frequency, whose gain the mean takes out again."""
    (made,) = filtered([latent(rows, columns)], [noise])
    for frame, own in zip(latent(rows, columns)[0].unbind(1), made.unbind(1), strict=True):
        theirs = _apply_sea_filter(frame.movedim(0, -1)[None], noise, POWER)[0].movedim(-1, 0)
        torch.testing.assert_close(own, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def test_chunks_are_filtered_each_by_its_own_noise():
    chunks = [latent(8, 8, seed) for seed in range(2)]
    both = filtered(chunks, [0.2, 0.9])
    assert (both.shape, both.dtype) == ((2, 4, 3, 8, 8), torch.float32)
    for chunk, noise, own in zip(chunks, (0.2, 0.9), both, strict=True):
        torch.testing.assert_close(filtered([chunk], [noise])[0], own)


def test_the_noisier_the_less_detail_counts():
    def roughness(noise: float) -> float:
        (made,) = filtered([latent(16, 16)], [noise])
        return float(made.diff(dim=-1).abs().mean() / made.abs().mean())

    rough = [roughness(noise) for noise in (0.0, 0.3, 0.7, 0.99)]
    assert rough == sorted(rough, reverse=True)
    assert rough[-1] < 0.5 * rough[0]


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens, wan_goldens], ids=["magi", "skyreels", "wan"])
def test_every_model_gives_its_chunks_filtered_by_their_share_of_noise(goldens):
    """At a chunk's first step its latent is noise."""
    generation = goldens.small_generation(method(SeaCache(threshold=0.1, most_skips=1, warmup_steps=1)))
    row = generation.schedule.rows[0]
    generation.begin_row(row)
    made = generation.features("filtered_latent", row.chunks)
    latents = generation.features("latent", row.chunks).reshape(made.shape)
    (first,) = filtered([latents[:1]], [_noise(row.oldest.t)])
    torch.testing.assert_close(made[0], first)


def _noise(t: float) -> float:
    """The first step's: 0 on MAGI-1, 999 or 1000 on the others."""
    return 1.0 if t == 0 else t / 1000

"""As far along as the first chunk went: by hand, what is exact, and what it holds for lack of."""

from __future__ import annotations

import pytest
import torch

from baselines.from_first import FromFirst
from flowcache.forecast.history import OutputHistory
from flowcache.schedule import ChunkStep
from flowcache.trace import Trace
from tests.methods import every_k
from tests.models import magi_goldens, skyreels_goldens

TIMES = (1000.0, 900.0, 700.0, 400.0, 0.0)
PATH = (0.0, 1.0, 3.0, 3.5, 7.0)  # of the first chunk: how far it has come


def step(chunk: int, index: int, times: tuple[float, ...] = TIMES) -> ChunkStep:
    return ChunkStep(chunk, index, times[index], times[min(index + 1, len(times) - 1)])


def update(kept: OutputHistory, at: ChunkStep, *values: float) -> None:
    kept.update(at, torch.tensor(values), torch.empty(0))


def after_first_chunk(times: tuple[float, ...] = TIMES) -> OutputHistory:
    """It moves both numbers by as much as its path says, one up and one down."""
    kept = OutputHistory(FromFirst())
    for index, value in enumerate(PATH):
        update(kept, step(0, index, times), 5 + value, -value)
    kept.drop(0)
    return kept


@pytest.mark.parametrize("times", [TIMES, tuple(1 - t / 1000 for t in TIMES)], ids=["falling", "rising"])
def test_a_chunk_goes_on_along_its_own_line_as_far_as_the_first_one_did(times):
    kept = after_first_chunk(times)
    update(kept, step(1, 0, times), 10.0, 0.0)
    update(kept, step(1, 1, times), 12.0, -1.0)
    # From path 0 to 1 the chunk went by (2, -1). At path 3 it is twice that further on.
    torch.testing.assert_close(kept.predict(step(1, 2, times)), torch.tensor([16.0, -3.0]))
    torch.testing.assert_close(kept.predict(step(1, 4, times)), torch.tensor([24.0, -7.0]))
    update(kept, step(1, 3, times), 0.0, 4.0)  # of 2.5 of the path, of which 3.5 are left
    torch.testing.assert_close(kept.predict(step(1, 4, times)), torch.tensor([-12 * 1.4, 4 + 5 * 1.4]))


def test_between_the_first_chunks_times_it_is_interpolated():
    kept = after_first_chunk()
    update(kept, ChunkStep(1, 0, 1000.0, 900.0), 0.0)
    update(kept, ChunkStep(1, 1, 950.0, 900.0), 1.0)  # half a step of length 1
    torch.testing.assert_close(kept.predict(ChunkStep(1, 2, 800.0, 0.0)), torch.tensor([4.0]))  # path 2


def test_it_holds_with_one_output_and_beyond_what_the_first_chunk_has_shown():
    kept = OutputHistory(FromFirst())
    update(kept, step(0, 0), 1.0)
    assert kept.predict(step(0, 1)).tolist() == [1.0]
    update(kept, step(0, 1), 2.0)
    assert kept.predict(step(0, 2)).tolist() == [2.0]  # itself, and not there yet
    update(kept, step(1, 0), 5.0)
    assert kept.predict(step(1, 1)).tolist() == [5.0]
    update(kept, step(1, 1), 6.0)
    assert kept.predict(step(1, 2)).tolist() == [6.0]


def test_where_nothing_changed_it_holds():
    kept = OutputHistory(FromFirst())
    for index in range(5):
        update(kept, step(0, index), 1.0)
    update(kept, step(1, 0), 1.0)
    update(kept, step(1, 1), 3.0)
    assert kept.predict(step(1, 2)).tolist() == [3.0]


def test_two_steps_of_one_time_are_one():
    times = (1000.0, 900.0, 900.0, 400.0, 0.0)
    kept = after_first_chunk(times)
    update(kept, step(1, 0, times), 0.0)
    update(kept, step(1, 1, times), 1.0)
    update(kept, step(1, 2, times), 9.0)
    assert kept.predict(step(1, 3, times)).tolist() == [9.0]
    assert kept.predict(step(1, 3, times)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_output_keeps_its_type(dtype):
    kept = OutputHistory(FromFirst())
    for chunk in range(2):
        for index in range(3 if chunk == 0 else 2):
            kept.update(step(chunk, index), torch.tensor([1.0 + index], dtype=dtype), torch.empty(0))
    predicted = kept.predict(step(1, 2))
    assert predicted.dtype == dtype
    assert predicted.tolist() == [3.0]


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_on_every_model_it_is_another_video_than_hold(goldens):
    def run(**options) -> torch.Tensor:
        trace = Trace()
        return goldens.latents_of(goldens.small_generation(every_k(every=3, warmup_steps=2, **options)), trace)

    latents = run(forecast=FromFirst())
    assert latents.isfinite().all()
    assert not torch.equal(latents, run())

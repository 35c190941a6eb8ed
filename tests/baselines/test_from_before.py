"""What the chunk before changed by: by hand, from whom it is taken, what it costs, and on every model."""

from __future__ import annotations

import pytest
import torch

from baselines.from_before import FromBefore
from flowcache.forecast.history import OutputHistory
from flowcache.reuse.base import Decision
from flowcache.schedule import ChunkStep, Row
from flowcache.trace import Trace
from tests.methods import by_row, every_k
from tests.models import magi_goldens, skyreels_goldens, wan_goldens

TIMES = (1000.0, 750.0, 500.0, 250.0, 0.0)
BYTES = 12  # of an output


def step(chunk: int, index: int, offset: float = 0.0) -> ChunkStep:
    return ChunkStep(chunk, index, TIMES[index] + offset, TIMES[index + 1])


def history(**options) -> OutputHistory:
    return OutputHistory(FromBefore(), **options)


def update(kept: OutputHistory, at: ChunkStep, value: float) -> None:
    kept.update(at, torch.full((3,), value), torch.empty(0))


def first_chunk(kept: OutputHistory) -> OutputHistory:
    """Its outputs are 1, 2, 4, 8."""
    for index in range(4):
        update(kept, step(0, index), 2.0**index)
    kept.drop(0)
    return kept


def predicted(kept: OutputHistory, *steps: ChunkStep) -> list[float]:
    return [float(kept.predict(each)[0]) for each in steps]


def test_a_skipped_step_takes_the_change_of_the_chunk_before_since_the_same_step():
    kept = first_chunk(history())
    update(kept, step(1, 0), 10.0)
    assert predicted(kept, step(1, 1), step(1, 2)) == [11.0, 13.0]  # 10 + (2 - 1), 10 + (4 - 1)
    update(kept, step(1, 3), 20.0)
    kept.drop(1)
    # Chunk 1 skipped its steps: chunk 2 takes on what chunk 1 took, which is chunk 0's; and chunk 1's own last step.
    update(kept, step(2, 0), 100.0)
    assert predicted(kept, step(2, 1), step(2, 2), step(2, 3)) == [101.0, 103.0, 110.0]
    assert kept.forecast_from == 2


def test_it_holds_where_the_chunk_before_has_nothing_for_it():
    kept = history()
    update(kept, step(0, 0), 5.0)
    assert predicted(kept, step(0, 1)) == [5.0]  # the first one
    assert kept.forecast_from == 1
    kept = first_chunk(history(follows=lambda chunk: chunk != 1))
    update(kept, step(1, 0), 10.0)
    assert predicted(kept, step(1, 1)) == [10.0]  # another prompt
    kept = first_chunk(history())
    update(kept, step(1, 0), 10.0)
    assert predicted(kept, step(1, 1, offset=-1.0)) == [10.0]  # steps at other times
    kept = first_chunk(history())
    kept.clear()
    update(kept, step(1, 0), 10.0)
    assert predicted(kept, step(1, 1)) == [10.0]  # another window


def test_what_was_taken_is_kept_as_long_as_it_may_be_asked_for():
    kept = history()
    update(kept, step(0, 0), 1.0)
    assert kept.bytes == BYTES  # the newest output and what the step took are one
    update(kept, step(0, 1), 2.0)
    kept.drop(0)
    assert kept.bytes == 2 * BYTES
    update(kept, step(1, 0), 10.0)
    assert kept.bytes == 3 * BYTES
    update(kept, step(1, 1), 20.0)
    assert kept.bytes == 3 * BYTES  # nobody looks back beyond it to the first step of chunk 0
    kept.drop(1)
    assert kept.bytes == 2 * BYTES
    assert kept.bytes_peak == 3 * BYTES
    kept.clear()
    assert kept.bytes == 0


def test_a_repeat_and_a_correction_count_as_taken():
    kept = OutputHistory(FromBefore(correction=1))
    update(kept, step(0, 0), 1.0)
    kept.open_gap(0, None, 0)
    kept.predict(step(0, 1), repeat=True)
    update(kept, step(0, 2), 5.0)
    (_, [(_, corrected)]) = kept.take_corrected(0)
    assert float(corrected[0]) == 3.0  # halfway
    update(kept, step(1, 0), 10.0)
    assert predicted(kept, step(1, 1), step(1, 2)) == [12.0, 14.0]


def test_the_forecasts_error_is_measured_with_what_it_would_have_borrowed():
    kept = first_chunk(history(figures=("forecast_error",)))
    update(kept, step(1, 0), 10.0)
    kept.take_report()
    update(kept, step(1, 1), 11.5)  # where it would have said 11
    assert kept.take_report()[1].item() == pytest.approx(0.5)


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens, wan_goldens], ids=["magi", "skyreels", "wan"])
def test_on_every_model_it_is_another_than_holding(goldens):
    def rule(row: Row) -> Decision:
        return Decision(tuple(s.chunk for s in row.steps if s.chunk % 2 == 0 or s.step % 2 == 0))

    trace = Trace()
    latents = goldens.latents_of(goldens.small_generation(by_row(rule, forecast=FromBefore())), trace)
    assert latents.isfinite().all()
    assert {entry.action for entry in trace.entries} == {"compute", "forecast"}
    assert trace.remarks == []
    assert not torch.equal(goldens.latents_of(goldens.small_generation(by_row(rule))), latents)


def test_where_all_chunks_skip_the_same_steps_it_only_holds_and_that_is_said():
    trace, options = Trace(), {"every": 2, "warmup_steps": 1}
    with pytest.warns(UserWarning, match="FromBefore only held: no chunk that was skipped had one before it that"):
        latents = wan_goldens.latents_of(wan_goldens.small_generation(every_k(**options, forecast=FromBefore())), trace)
    assert len(trace.remarks) == 1
    assert torch.equal(wan_goldens.latents_of(wan_goldens.small_generation(every_k(**options))), latents)

"""Placing steps by the cheapest path, and the command that calibrates: what it writes is what runs take."""

from __future__ import annotations

import json
import math
from contextlib import redirect_stdout
from io import StringIO
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from baselines.magnitudes import Magnitudes
from experiments.job.errors import BadInput
from experiments.job.paths import ROOT
from experiments.run.calibrated import check_calibrations
from experiments.studies import calibrate
from experiments.studies.placement import NO_STEP, Compute, Gaps, Position, Rule, gap_costs, paths, place, positions
from experiments.studies.trials import Recorder
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.reuse.base import Decision
from flowcache.reuse.plan import Plan, chunk_times
from flowcache.schedule import diffusion_forcing_schedule, sequential_schedule, staged_schedule, timesteps
from tests.experiments.made_records import job_of

STEPS = 9
TIMES = tuple(timesteps(STEPS).tolist())
SMALL = ["setting.num_frames=48", "setting.num_steps=8", "workers=1", "threads=1"]


def position(jumps: tuple[int, ...] = (), index: int = 0) -> Position:
    return Position(0, index, TIMES, jumps, (0,), (tuple(range(STEPS)),))


def gram(outputs: np.ndarray) -> np.ndarray:
    return outputs @ outputs.T / outputs.shape[1]


def outputs(seed: int = 0) -> np.ndarray:
    """A path that turns, [N, 5]."""
    rng, t = np.random.default_rng(seed), np.asarray(TIMES[:-1])[:, None]
    return np.sin(3 * t * rng.uniform(0.5, 2, (1, 5)) + rng.uniform(0, 6, (1, 5))) + 0.01 * rng.normal(size=(STEPS, 5))


def cost_of(path: tuple[int, ...], gaps: Gaps, costs: np.ndarray, price: float) -> float:
    by_key = dict(zip(gaps.keys, costs.tolist(), strict=True))
    total, before = price, NO_STEP
    for start, end in pairwise(path):
        if (before, start, end) not in by_key:
            return math.inf
        total += by_key[before, start, end] + price
        before = NO_STEP if any(start < jump <= end for jump in gaps.jumps) else start
    return total


@pytest.mark.parametrize("jumps", [(), (6,), (3, 6)])
@pytest.mark.parametrize("forecast", [Hold(), Linear(damping=0.9, correction=2)], ids=["hold", "corrected"])
def test_no_other_path_is_cheaper(forecast, jumps):
    where, rule = position(jumps), Rule()
    gaps = Gaps(where, forecast, rule.length_power, longest=STEPS)
    costs = gap_costs(gaps, [gram(outputs(seed)) for seed in range(2)], rule, 1.0)
    inner = range(1, STEPS - 1)
    paths = [(0, *chosen, STEPS - 1) for n in range(len(inner) + 1) for chosen in combinations(inner, n)]
    for price in (1e-6, 1e-4, 1e-2, 1.0):
        found = gaps.path(costs, [price] * STEPS)
        assert set(jumps) <= set(found)
        best = min(cost_of(path, gaps, costs, price) for path in paths)
        assert cost_of(tuple(found), gaps, costs, price) == pytest.approx(best, rel=1e-9)


def test_an_error_is_that_of_the_guesses_added_up_over_the_gap():
    """By hand: steps 3 and 4 held from step 2, in the latent at step 5."""
    made = outputs()
    gaps = Gaps(position(), Hold(), length_power=1.0, longest=STEPS)
    lengths = np.diff(TIMES)
    error = sum(lengths[n] / lengths.mean() * (made[2] - made[n]) for n in (3, 4))
    found = gaps.errors(gram(made), forecast_weight=0.0)[gaps.keys.index((1, 2, 5))]
    assert found == pytest.approx(np.sqrt(np.mean(error**2)))


def test_what_is_a_parabola_is_corrected_without_error_and_not_forecast_so():
    t = np.asarray(TIMES[:-1])[:, None]
    made = np.array([[1.0, 2.0]]) + t * np.array([[-3.0, 1.0]]) + t**2 * np.array([[2.0, 5.0]])
    gaps = Gaps(position(), Linear(correction=2), length_power=1.0, longest=STEPS)
    at = gaps.keys.index((1, 3, 6))
    assert gaps.errors(gram(made), 0.0)[at] == pytest.approx(0, abs=1e-7)
    assert gaps.errors(gram(made), 1.0)[at] > 1e-3


def test_one_price_for_all_positions_leaves_the_share_that_is_nearest():
    found = [position(), position(index=1)]
    gaps = [Gaps(each, Hold(), 0.5, STEPS) for each in found]
    costs = [gap_costs(each, [gram(outputs(n))], Rule(), 9.0 if n == 0 else 1.0) for n, each in enumerate(gaps)]
    found = [Position(0, n, TIMES, (), (n,), (tuple(range(n, n + STEPS)),)) for n in range(2)]
    compute = Compute({n: np.ones(STEPS) for n in range(2)}, fixed=2.0)
    for share in (0.4, 0.6, 0.8):
        steps, left = place(share, found, gaps, costs, compute, row_cost=0.25)
        assert left == pytest.approx((2 + sum(map(len, steps))) / (2 + 2 * STEPS))
        assert left == pytest.approx(share, abs=0.1)
        assert len(steps[0]) >= len(steps[1])  # whose errors weigh more


def test_every_path_is_the_cheapest_while_the_others_stay():
    """Beside every other path of one position, with what the rows then cost."""
    found = [Position(0, n, TIMES, (), (n,), (tuple(range(3 * n, 3 * n + STEPS)),)) for n in range(3)]
    gaps = [Gaps(each, Linear(), 0.5, STEPS) for each in found]
    costs = [gap_costs(each, [gram(outputs(n))], Rule(), 1.0) for n, each in enumerate(gaps)]
    inner = range(1, STEPS - 1)
    others = [(0, *chosen, STEPS - 1) for n in range(len(inner) + 1) for chosen in combinations(inner, n)]
    price, row_cost, shared = 0.003, 0.5, []

    def total(chosen):
        rows = {position.rows[0][step] for position, own in zip(found, chosen, strict=True) for step in own}
        errors = [cost_of(tuple(own), *each, 0.0) for own, *each in zip(chosen, gaps, costs, strict=True)]
        return sum(errors) + price * (sum(map(len, chosen)) + row_cost * len(rows)), len(rows)

    for cost in (0.0, row_cost):
        chosen = paths(price, cost, found, gaps, costs)
        shared.append(sum(map(len, chosen)) - total(chosen)[1])
    least, _ = total(chosen)
    for index in range(3):
        for other in others:
            assert total([other if n == index else own for n, own in enumerate(chosen)])[0] >= least - 1e-12
    assert shared[1] > shared[0]  # without a row's own cost nothing gathers


def test_chunks_stand_alike_where_the_same_neighbours_finish_at_the_same_steps():
    schedule = staged_schedule(6, timesteps(8))
    found = positions(schedule, {chunk: chunk_times(schedule, chunk) for chunk in range(6)})
    assert [p.chunks for p in found] == [(0,), (1,), (2,), (3, 4, 5)]
    assert [p.jumps for p in found] == [(), (6,), (6,), (6,)]
    assert found[3].rows == (tuple(range(6, 14)), tuple(range(8, 16)), tuple(range(10, 18)))
    windows = diffusion_forcing_schedule(9, range(900, 100, -100), ar_step=2, window_chunks=5, overlap_chunks=2)
    chunks = [chunk for window in windows.windows for chunk in window.generated]
    found = positions(windows, {chunk: chunk_times(windows, chunk) for chunk in chunks})
    assert [(p.window, p.index) for p in found][:6] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert sorted(chunk for p in found for chunk in p.chunks) == chunks
    assert [Rule(first_ratio=16).position_weight(p) for p in found[:5]] == [16, 4, 1, 1, 1]


def test_outputs_are_kept_until_their_chunk_is_finished():
    schedule = staged_schedule(2, timesteps(4), window_size=2)
    made = {chunk: torch.randn(4, 6, generator=torch.Generator().manual_seed(chunk)) for chunk in range(2)}
    now = {}
    recorder = Recorder(SimpleNamespace(output=lambda chunk: made[chunk][now[chunk]]))
    for row in schedule.rows:
        now = {step.chunk: step.step for step in row.steps}
        recorder(row, Decision(row.chunks))
    assert recorder._outputs == {}
    for chunk, values in made.items():
        np.testing.assert_allclose(recorder.grams[chunk], (values @ values.T / 6).numpy(), atol=1e-6)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of a small calibration, and what was printed."""
    folder = tmp_path_factory.mktemp("calibrated")
    with redirect_stdout(StringIO()) as printed:
        arguments = ["reuse=placed", "model=magi", "num_prompts=2", "shares=0.5,0.7", f"output_dir={folder}", *SMALL]
        assert calibrate.main(arguments) == 0
    return folder / "plans" / "magi_embedded.json", printed.getvalue()


def test_the_command_writes_a_plan_with_what_it_was_made_of_and_prints_how_it_fits(written):
    path, printed = written
    data = json.loads(path.read_text(encoding="utf-8"))
    assert list(data["shares"]) == ["0.5", "0.7"]
    assert len(data["prompts"]) == 2
    assert data["seed"] == calibrate.SEED != 1234
    assert data["fit"]["0.5"]["tried_prompts"] == 2
    assert [line.partition(":")[0] for line in printed.splitlines()] == [
        "vanilla 1", "vanilla 2", "share 0.5", "share 0.7", "written"
    ]  # fmt: skip
    assert "2 calibration prompts" in printed
    plan = Plan.read(path)
    for share in (0.5, 0.7):
        assert data["fit"][f"{share:g}"]["share"] == pytest.approx(share, abs=0.15)
        assert set(plan.steps(share, staged_schedule(2, timesteps(8)))) == {0, 1}


def test_shares_join_those_of_a_plan_that_was_made_of_the_same_and_replace_one_of_other_weights(
    written, tmp_path, capsys
):
    path, _ = written
    made = json.loads(path.read_text(encoding="utf-8"))
    one = made | {key: {"0.6": made[key]["0.5"]} for key in ("shares", "fit")}
    assert list(calibrate.merged(one, path)["shares"]) == ["0.5", "0.6", "0.7"]
    assert list(calibrate.merged(one | {"weights": "others"}, path)["shares"]) == ["0.6"]
    assert "was made of other weights, options or forecast, and is replaced" in capsys.readouterr().out
    assert calibrate.merged(one, tmp_path / "none.json") is one


def test_a_model_is_calibrated_again_whatever_the_plan_that_it_has(tmp_path):
    """Of other weights, of other shares, or damaged: that is what calibrating is for."""
    job = calibrate.calibration_job(["model=magi", "reuse.share=0.123", *SMALL, f"output_dir={tmp_path}"])
    assert job.method.reuse.plan is None
    assert job.method.forecast.correction == 2


def test_calibration_prompts_are_none_that_tables_show():
    for name in ("embedded", "full_size"):
        own, other = (
            set((ROOT / "experiments" / "prompts" / f"{name}{end}.txt").read_text(encoding="utf-8").splitlines())
            for end in ("", "_calibration")
        )
        assert other
        assert not own & other


def test_a_run_takes_a_plan_of_its_weights_and_refuses_one_of_others(written, tmp_path):
    path, _ = written
    overrides = ["method=flowcast_fast", "reuse.share=0.5", *SMALL]
    check_calibrations(job_of(tmp_path, *overrides, f"reuse.plan={path}"))
    data = json.loads(path.read_text(encoding="utf-8"))
    data["weights"] = "of another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BadInput, match=r"other was calibrated on weights of another, and these are .*reuse\.plan=null"):
        check_calibrations(job_of(tmp_path, *overrides, f"reuse.plan={other}"))


def test_the_command_writes_magcaches_table_and_a_run_takes_it_and_refuses_one_of_other_weights(tmp_path, capsys):
    arguments = ["reuse=magcache", "model=skyreels", "num_prompts=1", "setting.num_frames=37", "setting.num_steps=8"]
    assert calibrate.main([*arguments, "workers=1", "threads=1", f"output_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "branch 1: ratios" in said
    assert "reuse.threshold=0.12 reuse.most_skips=2 reuse.retention=0.2: " in said
    path = tmp_path / "ratios" / "skyreels_embedded.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (data["part"], data["seed"], len(data["prompts"])) == ("magcache", calibrate.SEED, 1)
    made = Magnitudes.read(path)
    assert len(made.times) == 8
    assert [len(own) for own in made.ratios] == [7, 7]  # of each guidance branch
    overrides = ["model=skyreels", "method=magcache", "setting.num_frames=37", f"reuse.table={path}"]
    check_calibrations(job_of(tmp_path, *overrides))
    path.write_text(json.dumps(data | {"weights": "of another"}), encoding="utf-8")
    with pytest.raises(BadInput, match=r"weights of another, .* reuse=magcache .* give reuse\.table=null"):
        check_calibrations(job_of(tmp_path, *overrides))


@pytest.mark.parametrize(
    ("reuse", "path"),
    [
        ("placed", "plans/magi_embedded.json"),
        ("shortest_path", "plans/magi_embedded_hold.json"),
        ("magcache", "ratios/magi_embedded.json"),
    ],
)
def test_a_file_is_of_its_policy_and_a_plan_of_its_forecast(reuse, path, tmp_path):
    overrides = [f"reuse={reuse}", f"output_dir={tmp_path}", "model=magi"]
    job = calibrate.calibration_job(list(overrides))
    forecast = calibrate.compose_config(calibrate.with_defaults(overrides)).forecast.name
    assert calibrate.place_of(job, forecast).as_posix() == path
    assert job.seed == calibrate.SEED


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reuse=magcache", "shares=0.5"], "shares is of plans, and reuse=magcache makes none; leave it out"),
        (["shares=much"], "shares must be numbers between 0 and 1"),
        (["shares=0.5,1.5"], "shares must be numbers between 0 and 1"),
        (["tried_prompts=-1"], "tried_prompts a whole number"),
        (["tried_prompts=9"], "tried_prompts=9 but there are 8 prompts"),
        (["reuse=every_k"], "reuse=EveryK takes no calibration; give reuse=placed, shor"),
        (["forecast=taylor"], "choose a forecast of two outputs"),
        (["forecast.limit=0.1"], "no forecast.limit"),
        (["weights=random"], "a calibration means nothing of random weights"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_run(arguments, said, capsys, tmp_path):
    assert calibrate.main([*arguments, f"output_dir={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


def test_chunks_one_after_another_stand_in_three_places():
    """What the first gets wrong is in all that follow, though no neighbour tells it from them."""
    schedule = sequential_schedule(6, (1000, 750, 500, 250))
    found = positions(schedule, {chunk: chunk_times(schedule, chunk) for chunk in range(6)})
    assert [(each.index, each.chunks) for each in found] == [(0, (0,)), (1, (1,)), (2, (2, 3, 4, 5))]
    weights = [Rule(first_ratio=16).position_weight(each) for each in found]
    assert weights == [16, 4, 1]

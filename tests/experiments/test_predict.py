"""Rooflines of logs by hand, and the command on a model of one chunk."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from experiments.benchmarks import predict
from experiments.benchmarks.cards import CARDS, Card
from experiments.benchmarks.emulation.operators import Operator, OperatorLog, Place
from experiments.benchmarks.predict import Run, efficiency, measured, operators_table, row_of, table_of
from experiments.benchmarks.roofline import roofline, seconds_of
from experiments.job.errors import BadInput
from experiments.records import code_version

CARD = Card(
    title="A card",
    product=100.0,
    attention=50.0,
    convolution=25.0,
    product_float32=10.0,
    convolution_float32=5.0,
    ceiling=200.0,
    memory=1000.0,
    memory_gib=1.0,
    launch_s=0.5,
)


@pytest.mark.parametrize(
    ("kind", "dtype", "flops", "num_bytes", "seconds"),
    [
        ("product", "bfloat16", 300, 0, 3.0),
        ("product", "float32", 300, 0, 30.0),
        ("product", "bfloat16", 300, 5000, 5.0),  # small matrices move more than they compute
        ("attention", "bfloat16", 300, 0, 6.0),
        ("attention", "float32", 300, 0, 30.0),
        ("convolution", "bfloat16", 300, 0, 12.0),
        ("convolution", "float32", 300, 0, 60.0),
        ("elementwise", "float32", 0, 4000, 4.0),
    ],
)
def test_an_operator_takes_the_longer_of_computing_and_moving(kind, dtype, flops, num_bytes, seconds):
    assert seconds_of(Operator("any", kind, dtype, flops, num_bytes), CARD) == seconds


def log_of(*operators: tuple[str, Operator, int]) -> OperatorLog:
    return OperatorLog(Counter({(Place(section, 0), operator): count for section, operator, count in operators}))


def test_parts_add_up_and_the_host_may_be_the_slower():
    product = Operator("mm", "product", "bfloat16", 300, 0)
    log = log_of(("transformer", product, 2), ("compression", product, 1), ("vae", product, 4))
    told = roofline(log, CARD)
    assert told.seconds == {"GEMM": 6.0, "attention": 0, "elementwise": 0, "compression": 3.0, "VAE": 12.0}
    assert (told.rows_s, told.total_s, told.launches) == (9.0, 21.0, 3)
    assert told.share_of_ceiling == pytest.approx(900 / 9 / 200)
    assert roofline(log_of(("transformer", Operator("add", "elementwise", "float32", 0, 1), 10)), CARD).rows_s == 5.0


def test_figures_of_a_card_stand_beside(tmp_path):
    made = Run("magi", "vanilla", log_of(("transformer", Operator("mm", "product", "bfloat16", 300, 0), 1)), 1, 2**29)
    assert measured(tmp_path, CARD, made) == {}
    folder = tmp_path / "NVIDIA_A card_80GB"
    folder.mkdir()
    (folder / "d_magi_vanilla.json").write_text(json.dumps({"figures": {"latency_s": 7.5}}), encoding="utf-8")
    row = row_of(made, CARD, measured(tmp_path, CARD, made))
    assert (row["predicted_s"], row["measured_s"], row["fits"]) == (3.0, 7.5, "yes")


def test_efficiency_is_the_speed_up_that_flops_allow():
    product, add = (Operator("mm", "product", "bfloat16", 300, 0), Operator("add", "elementwise", "float32", 0, 3000))
    vanilla = Run("magi", "vanilla", log_of(("transformer", product, 4)), 1, 0)
    assert efficiency(Run("magi", "fast", log_of(("transformer", product, 1)), 1, 0), vanilla, CARD) == 1
    half = log_of(("transformer", product, 1), ("transformer", add, 1))
    assert efficiency(Run("magi", "fast", half, 1, 0), vanilla, CARD) == 0.5


def test_an_unknown_card_is_refused_before_any_work():
    with pytest.raises(BadInput, match="h200, h100, a800, 4090"):
        predict.run(["model=wan"], device="b300")


def test_a_run_is_predicted(capsys):
    predict.run(["model=wan", "method=vanilla", "setting.num_frames=9"], device="4090")
    said = capsys.readouterr().out
    assert "| wan | vanilla | 4090 |" in said
    assert all(f"| {part} " in said for part in ("GEMM", "attention", "elementwise", "compression", "VAE"))


def test_cards_are_ordered_as_their_data_sheets_are():
    h200, h100, a800, rtx_4090 = (CARDS[name] for name in ("h200", "h100", "a800", "4090"))
    assert h200.memory > h100.memory > a800.memory > rtx_4090.memory
    assert h100.product > a800.product > rtx_4090.product


def test_tables_say_which_code_predicted_them_and_that_nothing_was_timed():
    for table in (table_of([]), table_of([], CARD), operators_table([])):
        assert table.text.endswith(f" Nothing was run or timed; version {code_version()}.")

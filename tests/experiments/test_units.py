"""Counts and amounts of compute as people read them."""

import pytest

from experiments.job.units import counted, flop_unit, flops_text


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (1, ["video"], "1 video"),
        (0, ["video"], "0 videos"),
        (2, ["prompt"], "2 prompts"),
        (1777, ["frame"], "1,777 frames"),
        (1, ["copy", "copies"], "1 copy"),
        (3, ["copy", "copies"], "3 copies"),
    ],
)
def test_counted(number, nouns, text):
    assert counted(number, *nouns) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (3.482e11, "348.2 GFLOPs"),
        (306e15, "306 PFLOPs"),
        (1e15, "1 PFLOPs"),
        (999.9e12, "999.9 TFLOPs"),
        (1825, "0.001825 MFLOPs"),
        (0, "0 MFLOPs"),
        (4.627e11, "462.7 GFLOPs"),
        (123456e15, "1.235e+05 PFLOPs"),
    ],
)
def test_flops_text(flops, text):
    assert flops_text(flops) == text
    assert flop_unit(flops)[0] == text.split()[1]

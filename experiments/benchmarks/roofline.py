"""Seconds that a card takes for a log of operators, if every kernel reaches the card's rate for its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.benchmarks.cards import Card
from experiments.benchmarks.emulation.operators import Operator, OperatorLog, Place

PARTS = ("GEMM", "attention", "elementwise", "compression", "VAE")


@dataclass(frozen=True)
class Roofline:
    """Of one video on one card.

    Attributes:
        seconds: by ``PARTS``; what is before the rows is with its kind.
        flops: of rows and compression.
        launches: of rows and compression; ``launch_s`` is what the host takes for them, beside the card.
    """

    seconds: Mapping[str, float]
    flops: int
    launches: int
    launch_s: float
    ceiling: float

    @property
    def rows_s(self) -> float:
        """Without decoding. The card waits for the host where launching takes longer than running."""
        return max(sum(self.seconds.values()) - self.seconds["VAE"], self.launch_s)

    @property
    def total_s(self) -> float:
        return self.rows_s + self.seconds["VAE"]

    @property
    def share_of_ceiling(self) -> float:
        """Of a large square product's rate, that the rows reach."""
        return self.flops / self.rows_s / self.ceiling


def roofline(log: OperatorLog, card: Card) -> Roofline:
    seconds = dict.fromkeys(PARTS, 0.0)
    flops = launches = 0
    for (place, operator), count in log.operators.items():
        seconds[_part(place, operator)] += count * seconds_of(operator, card)
        if place.section != "vae":
            flops += count * operator.flops
            launches += count
    return Roofline(seconds, flops, launches, launches * card.launch_s, card.ceiling)


def seconds_of(operator: Operator, card: Card) -> float:
    """The longer of computing and moving bytes."""
    return max(operator.flops / _rate(operator, card), operator.num_bytes / card.memory)


def _part(place: Place, operator: Operator) -> str:
    if place.section in ("vae", "compression"):
        return {"vae": "VAE", "compression": "compression"}[place.section]
    return {"attention": "attention", "elementwise": "elementwise"}.get(operator.kind, "GEMM")


def _rate(operator: Operator, card: Card) -> float:
    in_float32 = operator.dtype == "float32"
    if operator.kind == "convolution":
        return card.convolution_float32 if in_float32 else card.convolution
    if in_float32:
        return card.product_float32
    return card.attention if operator.kind == "attention" else card.product

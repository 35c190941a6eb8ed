"""What a device was asked to do: its operators by section and row, and what a loop at full speed must not do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["product", "convolution", "attention", "elementwise"]
Event = Literal["read by the host", "copy to the device", "float64"]
OUTSIDE = -1  # the row of what comes before the first, and after the last


@dataclass(frozen=True)
class Operator:
    """One launch.

    Attributes:
        name: PyTorch's.
        kind: matrix product, convolution, attention, or anything else, which moves bytes.
        dtype: of what it takes.
        flops: multiply-adds count 2; 0 of elementwise ones.
        num_bytes: read and written, each tensor once, broadcast dimensions too.
        masked: of attention, whether it takes a mask.
    """

    name: str
    kind: Kind
    dtype: str
    flops: int
    num_bytes: int
    masked: bool = False


@dataclass(frozen=True)
class Place:
    """Where in a generation: the sampler's section ("transformer", "vae", ...; "" outside of any), and the row."""

    section: str
    row: int


@dataclass(frozen=True)
class Incident:
    """Something that a row is to do without, and the line that did it."""

    event: Event
    place: Place
    line: str


@dataclass(frozen=True)
class Totals:
    """Of some operators together; see Operator."""

    launches: int
    flops: int
    num_bytes: int


class OperatorLog:
    """Filled while a generation runs.

    Attributes:
        place: where it is.
        operators: how often each ran where; of several networks' logs, sums and differences mean what they say.
        incidents: how often each happened.
    """

    def __init__(self, operators: Counter[tuple[Place, Operator]] | None = None) -> None:
        self.place = Place("", OUTSIDE)
        self.operators: Counter[tuple[Place, Operator]] = Counter() if operators is None else operators
        self.incidents: Counter[Incident] = Counter()

    def add(self, operator: Operator) -> None:
        self.operators[self.place, operator] += 1

    def note(self, event: Event, line: str) -> None:
        self.incidents[Incident(event, self.place, line)] += 1

    def totals(self, keep: Callable[[Place, Operator], bool] = lambda place, operator: True) -> Totals:
        """Of the operators to keep."""
        kept = [(o, count) for (place, o), count in self.operators.items() if keep(place, o)]
        return Totals(
            sum(count for _, count in kept),
            sum(count * operator.flops for operator, count in kept),
            sum(count * operator.num_bytes for operator, count in kept),
        )

    def in_rows(self, event: Event) -> list[Incident]:
        """Every time that it happened in a row, decoding aside."""
        return [i for i in self.incidents.elements() if i.event == event and is_in_row(i.place)]

    def launches_by_row(self) -> Counter[int]:
        """Decoding and compression aside."""
        rows: Counter[int] = Counter()
        for (place, _), count in self.operators.items():
            if is_in_row(place) and place.section != "compression":
                rows[place.row] += count
        return rows


def is_in_row(place: Place) -> bool:
    """Whether it is of the sampler's loop, and not of what comes before or of the VAE."""
    return place.row != OUTSIDE and place.section != "vae"


def with_layers(logs: Iterable[OperatorLog], num_layers: int) -> OperatorLog:
    """What a network of ``num_layers`` does, from what two of one and of two layers do: layers are alike, so that the
    difference is what one more of them does, in every row. Totals are right; an operator on something of all layers is
    there as sums of smaller and larger ones. The VAE has layers of its own: it and incidents are the second log's."""
    one, two = logs
    counts = dict(two.operators)
    for key in one.operators.keys() | two.operators.keys():
        if key[0].section != "vae":
            counts[key] = two.operators[key] + (num_layers - 2) * (two.operators[key] - one.operators[key])
    whole = OperatorLog(Counter({key: count for key, count in counts.items() if count}))
    whole.incidents = two.incidents
    return whole

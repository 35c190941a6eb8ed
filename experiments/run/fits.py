"""Which cards a job fits, as it is and with what makes it smaller, from shapes: ``plan=true`` tells it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from omegaconf import DictConfig
from rich.console import Console

from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.run.memory import TEXT_ENCODER, Memory, amount, memory_of, model_on_meta, text_encoder_bytes
from flowcache.kv.store.host import HostMemory
from flowcache.models.offload import ROOM_GIB
from flowcache.parallel import ALONE, Parallel

CARDS_GB = (24, 40, 48, 80, 96, 141)
USABLE = 0.9  # of a card: the rest is for CUDA itself, what kernels take inside and gaps between tensors
GIB = 2**30


@dataclass(frozen=True)
class Fit:
    """A way to run the job, what it takes of each card's memory, or why it cannot be."""

    name: str
    memory: Memory | None
    refused: str = ""

    def needs(self, card_gb: int) -> float:
        """GiB of a card; from one of under 64 GiB the text encoder leaves."""
        text = self.memory.weights.get(TEXT_ENCODER, 0) if card_gb < ROOM_GIB else 0
        return (self.memory.peak - text) / GIB

    @property
    def cards_gb(self) -> tuple[int, ...]:
        """Those that it fits."""
        return tuple(card for card in CARDS_GB if self.needs(card) <= USABLE * card)

    @property
    def told(self) -> str:
        if self.memory is None:
            return f"no: {self.refused}"
        least, most = (f"{self.needs(card):.3g}" for card in (CARDS_GB[0], CARDS_GB[-1]))
        text = f" ({most} with the text encoder, which leaves cards of under {ROOM_GIB} GiB)" if least != most else ""
        host = f" and {amount(self.memory.host)} of host memory" if self.memory.host else ""
        text += "" if "VAE" in self.memory.weights else " (the VAE, of no checkpoint, comes on top)"
        cards = ", ".join(map(str, self.cards_gb)) + " GB" if self.cards_gb else "none"
        return f"{least} GiB{text}{host}; fits {cards}"


def fits(job: Job, config: DictConfig) -> Iterator[Fit]:
    """The job as it is, then with its finished chunks' keys in host memory, then on several cards."""
    model = model_on_meta(config)
    text = 0 if job.checkpoint is None else text_encoder_bytes(job.checkpoint)
    away = replace(job.method, kv=replace(job.method.kv, store=HostMemory()))
    asked = ALONE if job.parallel == "none" else Parallel(job.parallel, 0, job.ranks)
    ways = [
        ("as asked", job, asked),
        ("kv/store=host", replace(job, method=away), asked),
        ("parallel=branches, 2 cards", job, Parallel("branches", 0, 2)),
        *((f"parallel=heads, {cards} cards", job, Parallel("heads", 0, cards)) for cards in (2, 4)),
    ]
    for name, each, parallel in ways:
        model.set_parallel(parallel)
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of parts: a run tells them
                memory = memory_of(each, model, text, None, on_gpu=True)
            yield Fit(name, memory)
        except BadInput as error:
            yield Fit(name, None, str(error))


def print_fits(job: Job, config: DictConfig, console: Console) -> None:
    """A line a way."""
    cards = ", ".join(map(str, CARDS_GB))
    console.print(f"      memory of a card, in a GPU's number types ({cards} GB, of which a tenth stays free):")
    for fit in fits(job, config):
        console.print(f"        {fit.name}: {fit.told}", markup=False)

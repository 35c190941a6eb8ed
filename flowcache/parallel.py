"""One video on several GPUs, a process each: what is shared out among them, and the collectives that this takes.

Two ways. By **branches** each process computes one guidance branch of a row, and hands its output to the other: a few
MB a row. By **heads** (Ulysses, arXiv 2309.14509) the processes share out the tokens, and where tokens meet others, in
self-attention, the heads: each holds the keys and values of its own heads alone, and two exchanges a layer turn tokens
into heads and back. All processes make the same decisions, and end with the same latents.

Shape letters: B batch, H heads, N parts of a forward that are alike (chunks, or latent frames), T tokens of a part, R
numbers of queries a token, E channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch import distributed as dist

Kind = Literal["none", "branches", "heads"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Parallel:
    """A process's part in a video. Tensors on device "meta" are exchanged with nobody, as shapes alone.

    Attributes:
        kind: what is shared out.
        rank, world: which of how many processes this is.
        group: theirs; None is the default one.

    Raises ValueError for a kind that is unknown, and for a number of processes that does not go with it.
    """

    kind: Kind = "none"
    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"parallel={self.kind!r} is unknown; choose {', '.join(KINDS)}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank={self.rank} must be one of {self.world} processes, counted from 0")
        if (self.kind == "none") != (self.world == 1):
            raise ValueError(
                f"parallel={self.kind} cannot be done by {self.world} process{'' if self.world == 1 else 'es'}; "
                "'none' is for one, 'branches' for two, 'heads' for as many as divide the heads"
            )

    @classmethod
    def joined(cls, kind: Kind, group: dist.ProcessGroup | None = None) -> Parallel:
        """Of this process, in a group of torch.distributed that was begun. Raises ValueError where none was."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"parallel={kind} needs a process for every GPU that know each other; start them with torchrun, and "
                "call torch.distributed.init_process_group() in each"
            )
        return cls(kind, dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def by_branch(self) -> bool:
        return self.kind == "branches"

    @property
    def by_head(self) -> bool:
        return self.kind == "heads"

    def held(self, of_branches: Sequence[Item]) -> list[Item]:
        """What this process holds, of one thing a guidance branch."""
        return [of_branches[self.rank]] if self.by_branch else list(of_branches)

    def split(self, parts: int, tokens: int) -> TokenSplit | None:
        """How a forward of N = ``parts`` parts of T = ``tokens`` tokens is shared out; None where it is not."""
        return TokenSplit(self, parts, tokens) if self.by_head else None

    # Collectives, which every process must call, in the same order.

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every process's tensor of this shape and type, by rank."""
        own = x.contiguous()
        if x.is_meta:
            return [own] * self.world
        found = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(found, own, group=self.group)
        return found

    def run(self, forwards: Sequence[tuple[int, Callable[[], Tensor], int]], like: Tensor) -> list[Tensor]:
        """What some forwards give, each with its guidance branch and how many chunks it is of.

        A process takes all of its own branch's before it hands them on. Each gives its chunks one after another along
        b, and ``like`` is a chunk, [1, C, b, h, w].
        """
        found = []
        for branch, forward, chunks in forwards:
            size = (*like.shape[:2], chunks * like.shape[2], *like.shape[3:])
            here = not self.by_branch or branch == self.rank
            found.append(forward() if here else like.new_empty(size))
        if self.by_branch:
            for output, (branch, *_) in zip(found, forwards, strict=True):
                self.broadcast(output, branch)
        return found

    def broadcast(self, x: Tensor, rank: int) -> None:
        """Put what it holds in the process ``rank`` into a contiguous tensor, in all others."""
        if not x.is_meta:
            dist.broadcast(x, group=self.group, group_src=rank)

    def exchange(self, sent: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Send the first tensor to the first process, and so on, and get as many, of the ``shapes`` that they sent."""
        flat = torch.cat([each.flatten() for each in sent])
        sizes = [math.prod(shape) for shape in shapes]
        received = flat.new_empty(sum(sizes))
        if not flat.is_meta:
            dist.all_to_all_single(received, flat, sizes, [each.numel() for each in sent], group=self.group)
        return [part.view(*shape) for part, shape in zip(received.split(sizes), shapes, strict=True)]

    def total(self, number: int, device: torch.device | str) -> int:
        """The sum of every process's number. Waits for the device."""
        if self.world == 1 or torch.device(device).type == "meta":
            return number
        summed = torch.tensor(number, dtype=torch.int64, device=device)
        dist.all_reduce(summed, group=self.group)
        return int(summed)


ALONE = Parallel()


@dataclass(frozen=True)
class TokenSplit:
    """A forward's tokens, shared out: of every part a process has the same tokens, T over ``world`` of them, rounded.

    So what holds for a part as a whole, such as its modulation, holds for each process's tokens of it.
    """

    parallel: Parallel
    parts: int
    tokens: int

    def _span(self, rank: int) -> slice:
        """Of the tokens of a part."""
        world = self.parallel.world
        return slice(rank * self.tokens // world, (rank + 1) * self.tokens // world)

    def _size(self, rank: int) -> int:
        span = self._span(rank)
        return span.stop - span.start

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where the tokens of each part are, among this process's."""
        size = self._size(self.parallel.rank)
        return tuple(slice(part * size, (part + 1) * size) for part in range(self.parts))

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This process's tokens, of N*T along a dimension."""
        return self._of(x.unflatten(dim, (self.parts, -1)), self.parallel.rank, dim + 1).flatten(dim, dim + 1)

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """All N*T tokens, of this process's along a dimension: the opposite of ``own``."""
        by_part = x.unflatten(dim, (self.parts, -1))
        shapes = [self._shape(by_part, dim + 1, self._size(rank)) for rank in range(self.parallel.world)]
        found = self.parallel.exchange([by_part] * self.parallel.world, shapes)
        return torch.cat(found, dim=dim + 1).flatten(dim, dim + 1)

    def to_heads(self, *xs: Tensor) -> list[Tensor]:
        """This process's tokens of all heads, each [B, H, its tokens * R, E] -> all tokens of its heads, each [B, H /
        world, N*T*R, E]; R may differ. One exchange for all."""
        world, rank = self.parallel.world, self.parallel.rank
        by_part = [x.unflatten(2, (self.parts, -1)) for x in xs]
        sent = [torch.cat([x.chunk(world, dim=1)[to].flatten() for x in by_part]) for to in range(world)]

        def shape(x: Tensor, sender: int) -> tuple[int, ...]:
            batch, heads, parts, numbers, channels = x.shape
            return batch, heads // world, parts, numbers // self._size(rank) * self._size(sender), channels

        shapes = [[shape(x, sender) for x in by_part] for sender in range(world)]
        received = self.parallel.exchange(sent, [[sum(map(math.prod, each))] for each in shapes])
        found = [
            [part.view(own) for part, own in zip(flat.split([*map(math.prod, each)]), each, strict=True)]
            for flat, each in zip(received, shapes, strict=True)
        ]
        return [torch.cat(of_senders, dim=3).flatten(2, 3) for of_senders in zip(*found, strict=True)]

    def to_tokens(self, x: Tensor, heads: int, tokens: int) -> Tensor:
        """All N*T tokens of this process's heads, along the dimensions ``heads`` and ``tokens`` -> its tokens of all
        heads."""
        by_part = x.unflatten(tokens, (self.parts, -1))
        sent = [self._of(by_part, rank, tokens + 1) for rank in range(self.parallel.world)]
        own = sent[self.parallel.rank].shape
        found = self.parallel.exchange(sent, [own] * self.parallel.world)
        return torch.cat(found, dim=heads + (heads > tokens)).flatten(tokens, tokens + 1)

    def _of(self, by_part: Tensor, rank: int, dim: int) -> Tensor:
        span = self._span(rank)
        return by_part.narrow(dim, span.start, span.stop - span.start)

    @staticmethod
    def _shape(x: Tensor, dim: int, size: int) -> tuple[int, ...]:
        return (*x.shape[:dim], size, *x.shape[dim + 1 :])

"""The cases of ``bench gpu``, in the order of their worth, and the settings that they are measured at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from experiments.benchmarks.gpu import micro
from experiments.benchmarks.gpu.compression import compression
from experiments.benchmarks.gpu.diffusers_pipeline import STEPS, beside_diffusers
from experiments.benchmarks.gpu.forward import forwards, kernels
from experiments.benchmarks.gpu.guidance import branches
from experiments.benchmarks.gpu.official import PUBLISHED, beside_official
from experiments.benchmarks.gpu.subject import RUNS, Subject
from experiments.benchmarks.gpu.videos import SAMPLED_EVERY, long_video, sampled_video, video
from flowcache.kernels import ATTENTION_BACKENDS

BUDGET = "kv.budget=1 chunk"
TIMED = 2 + RUNS  # forwards that timing one takes
KERNELS = len(ATTENTION_BACKENDS) + 1
COMPILE_S = 60.0

Setting = tuple[str, ...]


@dataclass(frozen=True)
class Sizes:
    """Settings of every case. ``skyreels_alone`` is a chunk at a time in one window and one guidance branch;
    ``skyreels_window`` one window, beside the official code; ``magi_long`` ten times as long as ``magi``.

    Attributes:
        contexts: chunks that a chunk's forward attends to, itself included.
        kernel_context: the one at which kernels are compared.
        fixed_s: about how long micro and compression take.
    """

    micro: micro.MicroSizes
    magi: Setting
    magi_sampled: Setting
    magi_long: Setting
    skyreels: Setting
    skyreels_alone: Setting
    skyreels_window: Setting
    contexts: tuple[int, ...]
    kernel_context: int
    compression_lengths: tuple[int, ...]
    fixed_s: float


_MAGI, _SKYREELS = ("model=magi", "setting=paper"), ("model=skyreels", "setting=paper")
PAPER = Sizes(
    micro=micro.PAPER,
    magi=(*_MAGI, "setting.num_steps=16"),
    magi_sampled=_MAGI,
    # 100 chunks of 4 steps each, on smaller frames so that it ends in minutes.
    magi_long=(
        *_MAGI,
        "setting.num_steps=4",
        "setting.num_frames=2400",
        "setting.height=480",
        "setting.width=480",
    ),
    skyreels=_SKYREELS,
    skyreels_alone=(
        *_SKYREELS,
        "model.options.ar_step=50",
        "model.options.base_num_frames=197",
        "model.options.guidance_scale=1",
    ),
    skyreels_window=(*_SKYREELS, "setting.num_frames=97", "model.options.corrector=published"),
    contexts=(1, 2, 5, 10),
    kernel_context=5,
    compression_lengths=(4032, 16128, 48600),  # the last is MAGI-1's; its whole matrices take 75 GB and more
    fixed_s=40.0,
)
# A rehearsal on a CPU, on networks of the embedded models' sizes.
_TINY_MAGI, _TINY_SKYREELS = ("model=magi", "setting.num_steps=8"), ("model=skyreels", "setting.num_steps=8")
_SMALL_WINDOW = (*_TINY_SKYREELS, "setting.height=32", "setting.width=32", "model.options.base_num_frames=57")
TINY = Sizes(
    micro=micro.TINY,
    magi=(*_TINY_MAGI, "setting.num_frames=96"),
    magi_sampled=(*_TINY_MAGI, "setting.num_frames=144"),
    magi_long=(*_TINY_MAGI, "setting.num_frames=288"),
    skyreels=(*_SMALL_WINDOW, "setting.num_frames=97"),
    skyreels_alone=(*_SMALL_WINDOW, "model.options.ar_step=8", "model.options.guidance_scale=1"),
    skyreels_window=(*_SMALL_WINDOW, "setting.num_frames=57", "model.options.corrector=published"),
    contexts=(1, 2),
    kernel_context=2,
    compression_lengths=(240,),
    fixed_s=3.0,
)


@dataclass(frozen=True)
class Work:
    """What a case takes: of the compute of a subject's whole video by a method some forwards of one chunk, or where it
    names none a share; and seconds beside it."""

    subject: Subject | None = None
    method: str = "vanilla"
    overrides: tuple[str, ...] = ()
    share: float = 1.0
    forwards: int = 0
    fixed_s: float = 0.0


@dataclass(frozen=True)
class Case:
    """What one file holds; ``name`` begins with its part's letter. ``work`` is what its time is estimated from."""

    name: str
    measure: Callable[[], dict[str, Any]]
    work: Work

    @property
    def part(self) -> str:
        return self.name[0]


def all_cases(device: str, overrides: Sequence[str], sizes: Sizes, official: str | None = None) -> Iterator[Case]:
    """What matters most comes first. The official code's rows need a checkout of it."""

    def subject(setting: Setting) -> Subject:
        return Subject((*setting, f"device={device}", *overrides))

    magi, skyreels, alone = subject(sizes.magi), subject(sizes.skyreels), subject(sizes.skyreels_alone)

    def a_video(part: str, of: Subject, method: str, *options: str) -> Case:
        name = f"{part}_{'magi' if of is magi else 'skyreels'}_{method}"
        return Case(name, partial(video, of, method, *options), Work(of, method, options))

    def a_forward(name: str, of: Subject) -> Case:
        measure = partial(forwards, of, contexts=sizes.contexts)
        return Case(name, measure, Work(of, forwards=TIMED * len(sizes.contexts)))

    def by_kernel(name: str, of: Subject) -> Case:
        measure = partial(kernels, of, context=sizes.kernel_context)
        return Case(name, measure, Work(of, forwards=TIMED * KERNELS, fixed_s=COMPILE_S))

    yield Case("a_micro", partial(micro.micro, device, sizes.micro), Work(fixed_s=sizes.fixed_s))
    yield a_forward("b_magi_forward", magi)
    yield a_forward("b_skyreels_forward", alone)
    yield a_video("d", magi, "flowcache_fast")
    yield a_video("d", magi, "vanilla")
    yield a_video("c", skyreels, "flowcache_fast")
    yield by_kernel("b_magi_kernels", magi)
    yield Case("c_skyreels_diffusers", partial(beside_diffusers, skyreels), Work(skyreels, forwards=4 * 5 * STEPS))
    yield Case("e_compression", partial(compression, device, sizes.compression_lengths), Work(fixed_s=sizes.fixed_s))
    yield a_video("f", magi, "flowcache_fast", BUDGET)
    yield by_kernel("b_skyreels_kernels", alone)
    for name, of in {"d_magi": magi, "c_skyreels": subject(sizes.skyreels_window)}.items() if official else ():
        work = Work(of, "flowcache_fast", PUBLISHED[name[2:]], share=2.5)  # both sides, and warming up
        yield Case(f"{name}_official", partial(beside_official, of, official), work)
    yield a_video("c", skyreels, "vanilla_kv")
    yield a_video("c", skyreels, "vanilla")
    yield a_video("f", skyreels, "flowcache_fast", BUDGET)
    sampled = subject(sizes.magi_sampled)
    for method in ("flowcache_fast", "vanilla"):
        share = 2 / SAMPLED_EVERY  # every so many rows, and about as many in which a chunk starts or ends
        yield Case(f"d_magi_64_{method}", partial(sampled_video, sampled, method), Work(sampled, method, share=share))
    yield a_video("d", magi, "flowcache_slow")
    yield Case("b_skyreels_branches", partial(branches, skyreels), Work(skyreels, forwards=4 * 6 * TIMED))
    yield a_video("c", skyreels, "flowcache_slow")
    long = subject(sizes.magi_long)
    yield Case("g_magi_long", partial(long_video, long), Work(long, "vanilla", (BUDGET,)))
    yield a_video("c", skyreels, "vanilla_causal")

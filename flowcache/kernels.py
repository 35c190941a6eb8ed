"""How a transformer is run, not what it computes: by which attention kernel, and with its blocks compiled or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn
from torch.nn import attention
from torch.nn.attention import SDPBackend, sdpa_kernel

AUTO = "auto"
# torch's own flash kernel is FlashAttention 2; where these packages are installed, theirs can take its place.
FLASH_PACKAGES = {"fa3": "flash_attn_3", "fa4": "flash-attn-4"}
ATTENTION_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    **dict.fromkeys(FLASH_PACKAGES, SDPBackend.FLASH_ATTENTION),
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# torch's words: on CUDA, on a CPU, and before it calls a package's kernel.
_REFUSALS = ("No available kernel", "No viable backend", "SDPA forward unsupported")


class BlockNetwork(Protocol):
    """A transformer whose blocks run by the kernels that are set; the first ``depth`` of them, or all if it is None."""

    attention_backend: str
    depth: int | None

    def compile_blocks(self) -> None: ...


def set_kernels(network: BlockNetwork, attention_backend: str = AUTO, compiled: bool = False) -> None:
    """How a network runs from now on; what is compiled stays so.

    Args:
        attention_backend: of ``ATTENTION_BACKENDS``, or "auto" for torch's own choice.
        compiled: compile its blocks, at their first call; see ``compile_seconds``.

    Raises ValueError for an unknown backend, and for one whose package is not installed.
    """
    check_backend(attention_backend)
    network.attention_backend = attention_backend
    if compiled:
        network.compile_blocks()


@contextmanager
def one_layer(network: BlockNetwork) -> Iterator[None]:
    """Within it a network runs its first layer alone: what is worked out for new shapes, plans of kernels and compiled
    code, is the same for all, and a whole video's is soon there."""
    network.depth = 1
    try:
        yield
    finally:
        network.depth = None


def check_backend(attention_backend: str) -> None:
    """Raises ValueError for an unknown attention backend, and for one whose package is not installed."""
    if attention_backend not in (AUTO, *ATTENTION_BACKENDS):
        known = ", ".join(ATTENTION_BACKENDS)
        raise ValueError(f"attention_backend={attention_backend!r} is unknown; choose {AUTO} or one of {known}")
    with _flash_kernel(attention_backend):
        pass


@contextmanager
def attention_kernel(backend: str) -> Iterator[None]:
    """Within it ``scaled_dot_product_attention`` runs by one backend; "auto" leaves the choice to torch.

    Raises ValueError, in the midst of what runs, where the backend cannot take what it is given.
    """
    if backend == AUTO:
        yield
        return
    with _flash_kernel(backend), sdpa_kernel(ATTENTION_BACKENDS[backend]):
        try:
            yield
        except RuntimeError as error:
            if any(words in str(error) for words in _REFUSALS):
                raise ValueError(
                    f"attention_backend={backend} cannot run this attention (device, type, channels a head or mask of "
                    f"a compressed cache); choose {AUTO}"
                ) from error
            raise


@contextmanager
def _flash_kernel(backend: str) -> Iterator[None]:
    """Within it torch's flash attention is the package's that the backend names; any other leaves it."""
    if backend not in FLASH_PACKAGES:
        yield
        return
    try:
        attention.activate_flash_attention_impl(backend.upper())
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"attention_backend={backend} runs the package {FLASH_PACKAGES[backend]}, which cannot be used here "
            f"({error}); install it, or choose {AUTO}"
        ) from error
    try:
        yield
    finally:
        attention.restore_flash_attention_impl()


def compile_methods(module: nn.Module | object, *names: str) -> None:
    """Compile some methods of an object at their first call, for any number of tokens; modules of one class share it.

    They must be functions of tensors alone. CUDA graphs (mode "reduce-overhead") are left out on purpose: every row
    has its own number of chunks and of keys, and a row at full size is hundreds of milliseconds of kernels, behind
    which the time to launch them hides.
    """
    for name in names:
        setattr(module, name, torch.compile(getattr(module, name), fullgraph=True, dynamic=True))


def compile_seconds() -> float:
    """What this process has spent compiling so far."""
    # Imported late: it takes a second, and only who compiles needs it.
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]

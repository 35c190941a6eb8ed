"""What graphics cards do in a second, for the roofline: rates that kernels reach, not those of the data sheet.

Of no card here is a rate measured but for the H200's matrix product and copy. The others follow from data sheets
(NVIDIA: H100 SXM, A800 80GB, GeForce RTX 4090; dense) at the shares that kernels are known to reach:

* products: 0.87 of what a large square product reaches, which on an H200 is 790 of 989 TFLOP/s in bfloat16;
* attention: cuDNN's or FlashAttention 3 on Hopper, at 600 TFLOP/s; FlashAttention 2 elsewhere, which its authors time
  at up to 0.7 of an A100's peak (arXiv 2307.08691) and which on Ada comes near to the products;
* float32: without tensor cores, as torch multiplies by default, at 0.67 of the peak; convolutions in TF32, of whose
  peak three-dimensional ones reach a fifth;
* memory: 0.81 of the data sheet's for elementwise kernels, as 3.5 of the H200's 4.8 TB/s with a copy at 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Card:
    """Operations and bytes in a second.

    Attributes:
        title: what its results' folder is called by.
        product, attention, convolution: bfloat16.
        product_float32, convolution_float32: the same in float32; attention then runs as its products.
        ceiling: of a large square product in bfloat16, which efficiencies are shares of.
        memory: bytes.
        memory_gib: that there is.
        launch_s: seconds that the host takes to launch a kernel.
    """

    title: str
    product: float
    attention: float
    convolution: float
    product_float32: float
    convolution_float32: float
    ceiling: float
    memory: float
    memory_gib: float
    launch_s: float = 7e-6


def _card(title: str, ceiling: float, attention: float, fp32: float, tf32: float, memory: float, gib: float) -> Card:
    """From TFLOP/s (``fp32`` and ``tf32`` are peaks) and GB/s that are reached."""
    return Card(
        title,
        0.87 * ceiling * TERA,
        attention * TERA,
        0.5 * ceiling * TERA,
        0.67 * fp32 * TERA,
        0.2 * tf32 * TERA,
        ceiling * TERA,
        memory * GIGA,
        gib,
    )


CARDS = {
    "h200": _card("H200", 790, 600, 67, 494, 3500, 141),
    "h100": _card("H100", 790, 600, 67, 494, 2450, 80),
    "a800": _card("A800", 265, 200, 19.5, 156, 1650, 80),
    "4090": _card("4090", 160, 150, 82.6, 82.6, 820, 24),
}

"""LPIPS v0.1, the learned perceptual distance (lower is better; Zhang et al., CVPR 2018).

Two back ends give the same numbers from the same verified weights:

- `package`: the `lpips` package, wherever it and torchvision import; nobody need install them for it.
- `own`: the network below, for machines without a torchvision that fits their torch.

Nothing is ever computed with random weights: without the right ones every call raises `MetricUnavailable`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.clips import Clip, check_pair
from eval.errors import MetricUnavailable
from eval.precision import full_float32
from eval.weights.lpips import Net, load_weights

Backend = Literal["auto", "package", "own"]

# Pixels of one batch, per clip: keeps the activations below 0.2 GiB with alex and 1 GiB with vgg.
MAX_BATCH_PIXELS = 2**19


def lpips(
    video: Clip,
    reference: Clip,
    *,
    net: Net = "alex",
    spatial: bool = True,
    device: str | torch.device = "cpu",
    backend: Backend = "auto",
) -> float:
    """Mean LPIPS over the frames of a clip.

    The default, `alex` with `spatial=True`, is what FlowCache's evaluation code computes, like most video caching
    papers: every layer's distance map is enlarged to the frame before the mean. `spatial=False` is the plain LPIPS of
    the image literature: the mean of each layer's own map. The two are close but not equal.

    Args:
        video: uint8 [F, H, W, 3], H and W at least 31 (alex) or 16 (vgg).
        reference: uint8 [F, H, W, 3].
        net: backbone, `alex` (shipped) or `vgg` (fetched once by `python -m eval.weights lpips`).
        spatial: see above.
        device: where the network runs, in float32 without TF32.
        backend: `auto` takes `package` where it imports, else `own`.

    Returns:
        mean distance, >= 0; 0 for identical clips.

    Raises:
        MetricUnavailable: the weights are missing or corrupt, or `backend="package"` does not import.
        TypeError: a clip is not uint8.
        ValueError: unknown net or back end, a clip is not [F, H, W, 3], the shapes differ, or the frames are too small.
    """
    if net not in ARCHITECTURES:
        raise ValueError(f"unknown LPIPS net {net!r}; choose one of {', '.join(ARCHITECTURES)}")
    check_pair(video, reference, ARCHITECTURES[net].min_side, f"lpips ({net})")
    # Kept between calls on a CPU only: on a GPU it would count as memory of whatever is measured there next.
    network = _distance if torch.device(device).type == "cpu" else _distance.__wrapped__
    distance = network(net, spatial, str(device), resolve_backend() if backend == "auto" else backend)
    frames_per_batch = max(1, MAX_BATCH_PIXELS // (video.shape[1] * video.shape[2]))
    total = 0.0
    with torch.inference_mode(), full_float32():
        for start in range(0, len(video), frames_per_batch):
            frames = slice(start, start + frames_per_batch)
            maps = distance(_to_network_range(video[frames], device), _to_network_range(reference[frames], device))
            total += maps.double().mean(dim=(1, 2, 3)).sum().item()
    return total / len(video)


@lru_cache(maxsize=1)
def resolve_backend() -> Literal["package", "own"]:
    """The back end that `auto` means on this machine."""
    try:
        importlib.import_module("torchvision")
        importlib.import_module("lpips")
    except Exception:  # a torchvision that does not fit its torch fails with RuntimeError, OSError or AttributeError
        return "own"
    return "package"


def _to_network_range(frames: Clip, device: str | torch.device) -> Tensor:
    """uint8 [F, H, W, 3] -> float32 [F, 3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
    return pixels.permute(0, 3, 1, 2).float() / 255 * 2 - 1


@lru_cache(maxsize=4)
def _distance(net: Net, spatial: bool, device: str, backend: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of two float32 [F, 3, H, W] batches in [-1, 1] to maps [F, 1, h, w] whose mean is the distance."""
    if backend == "own":
        return OwnLPIPS(net, spatial, device)
    if backend == "package":
        return _package(net, spatial, device)
    raise ValueError(f"unknown LPIPS back end {backend!r}; choose auto, package or own")


@dataclass(frozen=True)
class Stage:
    """What comes after the previous tap: an optional max pool, then convolutions, each followed by a ReLU."""

    pool: int | None  # window of the max pool in pixels; its stride is 2
    convs: tuple[tuple[int, int, int], ...]  # (index in torchvision's `features`, stride, padding)


@dataclass(frozen=True)
class Architecture:
    """A backbone up to its fifth tap; channels and kernel sizes come from the weights."""

    stages: tuple[Stage, ...]
    min_side: int  # smallest frame side in pixels that leaves every layer at least one position


ARCHITECTURES: dict[str, Architecture] = {
    "alex": Architecture(
        stages=(
            Stage(None, ((0, 4, 2),)),
            Stage(3, ((3, 1, 2),)),
            Stage(3, ((6, 1, 1),)),
            Stage(None, ((8, 1, 1),)),
            Stage(None, ((10, 1, 1),)),
        ),
        min_side=31,
    ),
    "vgg": Architecture(
        stages=(
            Stage(None, ((0, 1, 1), (2, 1, 1))),
            Stage(2, ((5, 1, 1), (7, 1, 1))),
            Stage(2, ((10, 1, 1), (12, 1, 1), (14, 1, 1))),
            Stage(2, ((17, 1, 1), (19, 1, 1), (21, 1, 1))),
            Stage(2, ((24, 1, 1), (26, 1, 1), (28, 1, 1))),
        ),
        min_side=16,
    ),
}


class OwnLPIPS:
    """LPIPS v0.1 from the verified weights alone, without torchvision.

    Called with two float32 [F, 3, H, W] batches in [-1, 1], it returns float32 [F, 1, H, W] distance maps
    (`spatial`) or [F, 1, 1, 1] distances.
    """

    # ImageNet's mean and deviation, for pixels in [-1, 1].
    SHIFT = (-0.030, -0.088, -0.188)
    SCALE = (0.458, 0.448, 0.450)
    EPSILON = 1e-10

    def __init__(self, net: Net, spatial: bool, device: str = "cpu") -> None:
        self.stages = ARCHITECTURES[net].stages
        self.spatial = spatial
        self.weights = {name: weight.to(device) for name, weight in load_weights(net).items()}
        self.shift = torch.tensor(self.SHIFT, device=device).view(1, 3, 1, 1)
        self.scale = torch.tensor(self.SCALE, device=device).view(1, 3, 1, 1)

    def __call__(self, video: Tensor, reference: Tensor) -> Tensor:
        distance = torch.zeros((), device=video.device)
        for tap, (found, wanted) in enumerate(zip(self._taps(video), self._taps(reference), strict=True)):
            layer = F.conv2d((found - wanted) ** 2, self.weights[f"lin{tap}.weight"])
            if self.spatial:
                layer = F.interpolate(layer, size=video.shape[-2:], mode="bilinear", align_corners=False)
            else:
                layer = layer.mean(dim=(2, 3), keepdim=True)
            distance = distance + layer
        return distance

    def _taps(self, frames: Tensor) -> list[Tensor]:
        """The five feature maps, each position scaled to unit length over the channels."""
        taps, features = [], (frames - self.shift) / self.scale
        for stage in self.stages:
            if stage.pool:
                features = F.max_pool2d(features, stage.pool, stride=2)
            for index, stride, padding in stage.convs:
                weight, bias = self.weights[f"features.{index}.weight"], self.weights[f"features.{index}.bias"]
                features = F.relu(F.conv2d(features, weight, bias, stride=stride, padding=padding))
            taps.append(features / ((features**2).sum(dim=1, keepdim=True).sqrt() + self.EPSILON))
        return taps


def _package(net: Net, spatial: bool, device: str) -> torch.nn.Module:
    """The `lpips` package's own network, filled with our verified weights so that it downloads nothing."""
    weights = load_weights(net)
    try:
        package = importlib.import_module("lpips")
    except Exception as error:
        raise MetricUnavailable(
            f"the lpips package does not import ({type(error).__name__}: {error}); install lpips and the torchvision "
            'that fits your torch, or use backend="own"'
        ) from error
    # pnet_rand only stops the download: the strict load below replaces every parameter of the backbone and the heads.
    network = package.LPIPS(net=net, spatial=spatial, pnet_rand=True, pretrained=False, verbose=False)
    backbone = {name.removeprefix("features."): weight for name, weight in weights.items() if "features." in name}
    for stage in (network.net.slice1, network.net.slice2, network.net.slice3, network.net.slice4, network.net.slice5):
        names = {name: backbone.pop(name) for name in list(stage.state_dict())}
        stage.load_state_dict(names, strict=True)
    for tap, head in enumerate(network.lins):
        (name,) = head.state_dict()
        head.load_state_dict({name: weights[f"lin{tap}.weight"]}, strict=True)
    if backbone:
        raise MetricUnavailable(f"this lpips package has another {net} backbone than v0.1.4: {sorted(backbone)} unused")
    return network.eval().to(device)

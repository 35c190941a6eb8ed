"""Reading weights: memory holds one shard at a time, and headers are read without what follows them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from flowcache.models import checkpoint as loading
from flowcache.models.checkpoint import load_weights, read_headers
from tests.models.headers import write_sparse


def test_host_memory_holds_one_shard_while_loading(tmp_path, monkeypatch):
    """The device's copy (another type, so a copy of its own) grows to the whole; pages of files stay within a shard."""
    num_shards, elements = 8, 4 * 2**20
    weights = {f"{i}.weight": torch.zeros(1, elements, dtype=torch.bfloat16) for i in range(num_shards)}
    for name, tensor in weights.items():
        save_file({name: tensor + 1}, tmp_path / f"model-{name[0]}.safetensors")
    index = {"weight_map": {name: f"model-{name[0]}.safetensors" for name in weights}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with torch.device("meta"):
        module = torch.nn.ModuleList(torch.nn.Linear(elements, 1, bias=False) for _ in range(num_shards))
    mapped = []

    class Watched:
        def __init__(self, *args, **options) -> None:
            self.file = loading_safe_open(*args, **options)

        def __enter__(self):
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            tensor = self.opened.get_tensor(name)
            tensor.sum()  # every page is read
            mapped.append(file_bytes())
            return tensor

        def __getattr__(self, name):
            return getattr(self.opened, name)

    loading_safe_open = loading.safe_open
    monkeypatch.setattr(loading, "safe_open", Watched)
    before = file_bytes()
    load_weights(module, tmp_path, "cpu")
    shard_bytes = 2 * elements
    assert len(mapped) == num_shards
    assert max(mapped) - before < 1.5 * shard_bytes
    assert all(layer.weight.dtype == torch.float32 and layer.weight.eq(1).all() for layer in module)


def file_bytes() -> int:
    """Resident pages of files of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", status)[1])


def test_headers_are_all_that_is_read(tmp_path):
    """A file of 64 GiB is described at once."""
    write_sparse(tmp_path / "model.safetensors", {"weight": torch.empty(2**15, 2**20, device="meta").bfloat16()})
    (stored,) = read_headers(tmp_path).values()
    assert (stored.shape, stored.dtype, stored.nbytes) == ((2**15, 2**20), torch.bfloat16, 2**36)

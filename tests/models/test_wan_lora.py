"""Adapters of low rank: merged as recorded, whatever their names' dialect, and refused whole where they do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowcache.checkpoints import loaded_files, main, verify
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.wan.attention import Member, Pack
from flowcache.models.wan.checkpoint import load_transformer, locate
from flowcache.models.wan.lora import read_adapter
from flowcache.models.wan.names import transformer_name
from flowcache.models.wan.network import Transformer, WanNetwork
from tests.models.wan_files import averaged, transformer, write_base, write_published
from tests.models.wan_goldens import manifest, tensors

ALPHA = 8.0
A, B = (f"base_model.model.blocks.0.self_attn.q.lora_{half}.weight" for half in "AB")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """LongLive's two files, beside the original Wan 2.1."""
    write_base(tmp_path / "Wan2.1-T2V-1.3B")
    base = write_published(tmp_path / "models" / "longlive_base.pt", generator=tensors("weights"))
    write_lora(base.parent / "lora.pt", tensors("lora"))
    return base.parent


def write_lora(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"generator_lora": weights}, path)
    return path


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in transformer().state_dict().items()}


def merged() -> dict[str, Tensor]:
    """The golden transformer with the golden adapter, by the definition, in float64."""
    weights = {name: tensor.double() for name, tensor in transformer().state_dict().items()}
    for name, down in tensors("lora").items():
        if name.endswith(".lora_A.weight"):
            up = tensors("lora")[name.replace("lora_A", "lora_B")]
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[manifest("mapping")["transformer"][f"{layer}.weight"]] += ALPHA / 4 * up.double() @ down.double()
    return {name: tensor.float() for name, tensor in weights.items()}


def assert_merged(loaded: Transformer) -> None:
    expected = merged()
    changed = [name for name in expected if not torch.equal(expected[name], transformer().state_dict()[name])]
    assert len(changed) == 30  # ten matrices a block
    for name, tensor in loaded.state_dict().items():
        tolerance = 1e-6 if name in changed else 0
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance, msg=name)


@torch.inference_mode()
def forward(loaded: Transformer, num_blocks: int) -> Tensor:
    """Blocks of three frames at the recorded timestep, none of which sees later ones: flow [1, F, C, h, w]."""
    network, given = WanNetwork(loaded), tensors("forward")
    latent = given["in.x"][:, : 3 * num_blocks].transpose(1, 2)
    frames, rows, columns = latent.shape[2:]
    x = network.embed(latent)
    members = tuple(Member(block, 3 * x.shape[1], 0, block) for block in range(num_blocks))
    rope = tuple(table.flatten(0, 1) for table in network.rope_table(frames, rows, columns))
    times = network.time_table(torch.full((frames,), manifest("forward")["lora"]["timestep"]))
    x = network.blocks(x, times.modulation, network.caption(given["in.context"]), Pack(members, rope))
    return network.head(x, times.embedding, rows, columns).transpose(1, 2)


def test_the_merged_transformer_gives_the_recorded_forwards(checkpoint):
    loaded = load_transformer(locate(checkpoint), lora_alpha=ALPHA)
    assert_merged(loaded)
    flow, recorded = forward(loaded, 2), tensors("forward")
    for block in range(2):
        own, expected = flow[:, 3 * block : 3 * block + 3], recorded[f"lora.block{block}"]
        torch.testing.assert_close(own, expected, rtol=0, atol=2e-5)
    assert (forward(transformer(), 1) - recorded["lora.block0"]).abs().max() > 0.01  # the adapter is felt


def test_without_an_alpha_the_scale_is_one(checkpoint):
    """As LongLive's own, of rank and alpha 256."""
    loaded = load_transformer(locate(checkpoint)).blocks[0].attn1.to_q.weight
    before = transformer().blocks[0].attn1.to_q.weight
    torch.testing.assert_close(loaded, before + tensors("lora")[B] @ tensors("lora")[A], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("base_model.model.", "base_model.model.model.").replace(".weight", ".default.weight"),
        lambda name: name.replace("base_model.model.", "base_model.model._fsdp_wrapped_module."),
        lambda name: name.replace("base_model.model.", "diffusion_model.").replace("lora_A", "lora_down"),
        lambda name: (
            "transformer."
            + re.sub(
                r"base_model\.model\.(.+)\.lora", lambda m: transformer_name(m[1] + ".weight")[:-7] + ".lora", name
            )
        ),
    ],
    ids=["bare", "peft", "fsdp", "kohya", "diffusers"],
)
def test_the_dialects_of_names_mean_the_same(checkpoint, tmp_path, rename):
    renamed = {rename(name): tensor for name, tensor in tensors("lora").items()}
    assert len(renamed) == 60
    assert not renamed.keys() & tensors("lora").keys()
    save_file(renamed, tmp_path / "another.safetensors")
    files = locate(checkpoint, lora=tmp_path / "another.safetensors")
    assert_merged(load_transformer(files, lora_alpha=ALPHA))


def test_an_alpha_in_the_file_counts_unless_another_is_given(tmp_path):
    weights = tensors("lora") | {A.replace("lora_A.weight", "alpha"): torch.tensor(2.0)}
    path = write_lora(tmp_path / "lora.pt", weights)
    name = "blocks.0.attn1.to_q.weight"
    adapter = read_adapter(path, shapes())
    assert adapter.changes[name][2] == 0.5
    assert adapter.changes["blocks.1.attn1.to_q.weight"][2] == 1.0
    assert read_adapter(path, shapes(), ALPHA).changes[name][2] == 2.0


def test_the_merge_is_in_float32_before_the_weights_take_their_type(checkpoint):
    half = load_transformer(locate(checkpoint), dtype=torch.bfloat16, lora_alpha=ALPHA)
    whole = load_transformer(locate(checkpoint), lora_alpha=ALPHA)
    own, expected = half.blocks[1].ffn.net[2].weight, whole.blocks[1].ffn.net[2].weight
    assert torch.equal(own, expected.bfloat16())
    stored = {name: tensor.bfloat16() for name, tensor in tensors("weights").items()}  # exact: they are bfloat16
    base = write_published(checkpoint / "longlive_base.pt", generator=stored)
    assert_merged(load_transformer(locate(base), lora_alpha=ALPHA))


def test_an_adapter_is_verified_and_counts_among_the_files(checkpoint):
    inventory = verify(checkpoint)
    assert inventory.all_problems() == []
    assert inventory.name == "LongLive of its own size"
    assert inventory.parts[1].name == "adapter"
    assert inventory.parts[1].num_parameters == sum(tensor.numel() for tensor in tensors("lora").values())
    assert {"lora/lora.pt", "transformer/longlive_base.pt"} < loaded_files(checkpoint).keys()


def lora(**changes: Tensor | None) -> dict[str, Tensor]:
    """The golden adapter with entries exchanged; those that are None are left out."""
    return {name: tensor for name, tensor in (tensors("lora") | changes).items() if tensor is not None}


DAMAGE = {
    "half": (lambda: lora(**{B: None}), r"1 lack one of their two halves \(blocks.0.attn1.to_q.weight\)"),
    "unknown layer": (
        lambda: lora(**{name.replace("blocks.0", "blocks.9"): tensors("lora")[name] for name in (A, B)}),
        r"1 are of no matrix that the transformer has \(blocks.9.attn1.to_q.weight\)",
    ),
    "no matrix": (
        lambda: lora(**{name.replace("self_attn.q", "self_attn.norm_q"): tensors("lora")[name] for name in (A, B)}),
        r"1 are of no matrix .*norm_q",
    ),
    "inputs": (
        lambda: lora(**{A: torch.zeros(4, 59)}),
        r"1 wrong shapes \(first blocks.0.attn1.to_q.weight, which is \[60, 60\]: lora_A is \[4, 59\] and lora_B ",
    ),
    "ranks": (lambda: lora(**{B: torch.zeros(60, 3)}), r"1 wrong shapes .*lora_A is \[4, 60\] and lora_B \[60, 3\]"),
    "no rank": (lambda: lora(**{A: torch.zeros(0, 60), B: torch.zeros(60, 0)}), r"1 wrong .*lora_A is \[0, 60\]"),
    "flat": (lambda: lora(**{A: torch.tensor(1.0)}), r"1 wrong shapes .*lora_A is \[\]"),
    "another kind": (
        lambda: lora(**{A.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(60)}),
        r"1 entries are no halves of a low-rank adapter \(base_model.*lora_magnitude_vector\)",
    ),
    "another's": (
        lambda: {"x.lora_A.weight": torch.zeros(4, 60), "x.lora_B.weight": torch.zeros(60, 4)},
        r"1 are of no matrix that the transformer has \(x.weight\)",
    ),
    "empty": (dict, "does not fit the transformer: it is empty"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_read(checkpoint, damage, monkeypatch, capsys):
    made, message = DAMAGE[damage]
    write_lora(checkpoint / "lora.pt", made())
    monkeypatch.setattr("flowcache.models.wan.checkpoint.fill", lambda *a, **k: pytest.fail("weights were loaded"))
    monkeypatch.setattr("flowcache.models.wan.lora.reader", lambda *a, **k: pytest.fail("the adapter was read"))
    with pytest.raises(CheckpointError, match=message) as error:
        load_transformer(locate(checkpoint))
    assert "lora.pt does not fit the transformer: " in str(error.value)
    assert "\n" not in str(error.value)
    assert main(["verify", str(checkpoint)]) == 1
    assert capsys.readouterr().err == f"problem: {error.value}\n"


class Code:
    def __reduce__(self):
        return print, ("code of the file was run",)


def test_files_that_are_no_adapter_are_named(checkpoint, capsys):
    path = checkpoint / "lora.pt"
    torch.save({"generator": averaged()}, path)
    with pytest.raises(
        CheckpointError, match=r"has no 'generator_lora': it holds generator; give the file of an adapter"
    ):
        load_transformer(locate(checkpoint))
    torch.save({"generator_lora": tensors("lora"), "more": Code()}, path)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_transformer(locate(checkpoint))
    assert capsys.readouterr().out == ""
    write_lora(path, tensors("lora"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"lora.pt is damaged or cut short \(.*; download it again"):
        load_transformer(locate(checkpoint))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_scale_is_refused(checkpoint, alpha):
    with pytest.raises(ValueError, match="must be positive and finite"):
        load_transformer(locate(checkpoint), lora_alpha=alpha)

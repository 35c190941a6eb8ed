"""Codes, scales and what comes back, against the official code of KIVI, a study of causal Wan, and Quant-VideoGen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from baselines import quant_videogen
from baselines.kivi import Kivi
from baselines.quant_videogen import QuantVideoGen
from baselines.quarot import QuaRot, hadamard
from flowcache.kv.store.base import StoreShape
from flowcache.kv.store.clusters import cluster, of_ids
from flowcache.kv.store.float8 import Float8
from flowcache.kv.store.grid import on_affine_grid, pack, unpack
from flowcache.kv.store.quantised import Quantised
from tests.golden_files import manifest, tensors

MANIFEST, TENSORS = manifest("kv_quant/kv_quant"), tensors("kv_quant/kv_quant")


def settled(store: Quantised, key: Tensor, value: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """One block [B, G, T, E]: what is held of keys, and of values, and both as they come back."""
    batch, heads, tokens, channels = key.shape
    store.allocate(StoreShape(1, batch, heads, tokens, channels, key.dtype, "cpu"))
    store.write(0, slice(0, tokens), key, value)
    store.settle(0, slice(0, tokens))
    parts = ([part[0, 0] for part in codes] for codes in store._codes)
    return *parts, *store.read(0, slice(0, tokens))


@pytest.mark.parametrize("name", ["kivi.b2.g32.f32", "kivi.b2.g32.f16", "kivi.b4.g32.f32", "kivi.b4.g32.f16"])
def test_kivi_is_the_official_code_to_the_bit(name):
    case, golden = MANIFEST["kivi"][name], TENSORS
    dtype = {"f32": torch.float32, "f16": torch.float16}[case["dtype"]]
    store = Kivi(bits=case["bits"], group=case["group"])
    *held, key, value = settled(store, *(golden[f"kivi.{kind}"].to(dtype) for kind in ("key", "value")))
    for kind, parts, back in zip(("key", "value"), held, (key, value), strict=True):
        packed, scale, lowest = (part.mT if kind == "key" else part for part in (parts[0].flatten(-2), *parts[1:]))
        words = golden[f"{name}.{kind}_packed"]
        official = (words.mT if kind == "key" else words).contiguous().view(torch.uint8)
        assert torch.equal(packed.mT if kind == "key" else packed, official)
        assert torch.equal(scale, golden[f"{name}.{kind}_scale"])
        assert torch.equal(lowest, golden[f"{name}.{kind}_min"])
        assert torch.equal(back, golden[f"{name}.{kind}_back"])
        off = (back.float() - golden[f"kivi.{kind}"]).abs().mean().item()
        assert off == pytest.approx(case[f"{kind}_error"], rel=1e-3)


@pytest.mark.parametrize("data", ["plain", "offset"])
@pytest.mark.parametrize(("method", "rotation"), [("rtn", False), ("quarot", True)])
@pytest.mark.parametrize("bits", [2, 4])
def test_rounding_in_blocks_and_quarot_are_the_studys(data, method, rotation, bits):
    golden = TENSORS
    entries = [golden[f"study.{data}.{kind}"].transpose(1, 2) for kind in ("key", "value")]
    *held, key, value = settled(QuaRot(bits=bits, rotation=rotation), *entries)
    for kind, parts, back in zip(("key", "value"), held, (key, value), strict=True):
        name = f"study.{data}.{method}{bits}"
        expected = golden[f"{name}.{kind}_back"].transpose(1, 2)
        # Sums of a rotation come in another order on another machine.
        torch.testing.assert_close(back, expected, rtol=0, atol=2e-6 if rotation else 0)
        if data == "plain":
            codes = unpack(parts[0], bits, 16).to(torch.int8) - 2 ** (bits - 1)  # [B, G, E, R, 16]
            assert torch.equal(codes.permute(0, 3, 4, 1, 2), golden[f"{name}.{kind[0]}.q"])
            scale = parts[1].permute(0, 3, 1, 2)[:, :, None]
            torch.testing.assert_close(scale, golden[f"{name}.{kind[0]}.scale"], rtol=1e-3 if rotation else 0, atol=0)


@dataclass(kw_only=True)
class FromStoredStarts(QuantVideoGen):
    """Begins with the tokens that the official run drew."""

    case: str

    def starts(self, rest: Tensor, stage: int) -> Tensor:
        index = TENSORS[f"{self.case}.init_index"][stage][None, ..., None]
        return rest.gather(2, index.expand(*index.shape[:-1], rest.shape[-1]))


def in_doubles(x: Tensor, starts: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """`cluster`, so that tokens nearly as near to another centroid fall as in the official run on any machine."""
    ids, centroids = cluster(x.double(), starts.double(), iterations)
    return ids, centroids.float()


def official_codes(name: str) -> Tensor:
    """Of [1, 2, 48, 32] numbers; packed with the first one in the highest bits."""
    packed, bits = TENSORS[f"{name}.packed"], MANIFEST["qvg"][name]["bits"]
    shifts = torch.arange(8 - bits, -1, -bits, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


@pytest.mark.parametrize("name", ["qvg.released_form", "qvg.int4", "qvg.three_stages"])
def test_quant_videogen_is_the_official_code(name, monkeypatch):
    monkeypatch.setattr(quant_videogen, "cluster", in_doubles)
    case, golden = MANIFEST["qvg"][name], TENSORS
    options = {option: case[option] for option in ("bits", "clusters", "stages")}
    store = FromStoredStarts(**options, iterations=case["iters"], group=case["block"], case=name)
    parts, _, back, _ = settled(store, golden["qvg.x"], golden["qvg.x"])
    for stage in range(case["stages"]):
        assert torch.equal(parts[2 + 2 * stage], golden[f"{name}.ids{stage}"])
        centroids = parts[3 + 2 * stage]
        torch.testing.assert_close(centroids, golden[f"{name}.centroids{stage}"], rtol=0, atol=2e-6)
    assert torch.equal(parts[1].float(), golden[f"{name}.scale"])
    codes = unpack(parts[0], case["bits"], case["block"]).flatten(-2)
    arbitrary = (golden[f"{name}.scale"] == 0).repeat_interleave(case["block"], dim=-1)
    assert torch.equal(codes[~arbitrary], official_codes(name)[~arbitrary])
    torch.testing.assert_close(back, golden[f"{name}.back"], rtol=0, atol=2e-6)
    assert (back - golden["qvg.x"]).abs().mean().item() == pytest.approx(case["error"], rel=1e-4)


def test_our_affine_grid_over_clusters_is_quant_videogens_asymmetric_form():
    name, golden = "qvg.asymmetric", TENSORS
    case, x = MANIFEST["qvg"][name], golden["qvg.x"]
    starts = x.gather(2, golden[f"{name}.init_index"][0][None, ..., None].expand(1, 2, 8, 32))
    ids, centroids = in_doubles(x, starts, case["iters"])
    assert torch.equal(ids, golden[f"{name}.ids0"])
    rest = (x - of_ids(centroids, ids)).unflatten(-1, (-1, case["block"]))
    codes, scale, lowest = on_affine_grid(rest, case["bits"], torch.bfloat16)
    official = golden[f"{name}.scale"]
    alone = official < 1e-6  # of a cluster of one token nothing but rounding is left
    assert torch.equal(scale[..., 0].float()[~alone], official[~alone])
    step = golden[f"{name}.zero"].abs() * 2**-7 + 1e-6
    assert ((lowest[..., 0].float() - golden[f"{name}.zero"]).abs() <= step).all()
    differ = codes != official_codes(name).unflatten(-1, (-1, case["block"]))
    assert differ[~alone].float().mean() < 0.01  # where the zero point is a step off


def test_8_bit_floating_point_is_torchs_which_is_the_published_rounding():
    x = torch.cat([TENSORS["float.x"].clamp(-448, 448), torch.tensor([448.0])])[None, None, :, None]
    *_, back, _ = settled(Float8(), x, x)  # the largest number is the largest that there is, so that the scale is 1
    assert torch.equal(back.flatten()[:-1], TENSORS["float.e4m3_torch"])
    assert torch.equal(back.flatten()[:-1], TENSORS["float.e4m3_qvg"])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1, 3, 8, 13])
def test_codes_come_back_from_their_bytes(bits, size):
    codes = torch.randint(0, 2**bits, (2, 5, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack(codes, bits)
    assert packed.shape[-1] == -(-size * bits // 8)
    assert torch.equal(unpack(packed, bits, size), codes)


@pytest.mark.parametrize("size", [1, 2, 8, 12, 32, 96])
def test_a_hadamard_matrix_is_orthogonal_and_its_own_inverse(size):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(size))
    assert torch.equal(matrix, matrix.mT)

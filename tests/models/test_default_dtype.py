"""torch's default type is the caller's business: models load and sample alike under any."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from experiments.job.paths import ROOT
from flowcache import generate
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from flowcache.schedule import step_intervals, timesteps
from tests.methods import chunkwise
from tests.models.skyreels_pipeline import write_checkpoint

MAGI = ROOT / "experiments" / "embedded" / "magi"
SMALL = {"num_steps": 8, "height": 32, "width": 32}
DTYPES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(params=DTYPES)
def default_dtype(request) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def skyreels(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("skyreels"))


def video(model: Magi | SkyReels, num_frames: int, **options) -> Tensor:
    method = chunkwise(threshold=0.1, warmup_steps=1, budget="0.5 chunks")
    return torch.cat(list(generate(model, "a red circle", num_frames, method, 3, **options)))


def dtypes(*modules: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for module in modules for parameter in module.parameters()}


@pytest.fixture(scope="module")
def expected(skyreels) -> dict[str, Tensor]:
    image = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {
        "image": image,
        "skyreels": video(SkyReels.from_pretrained(skyreels), 37, image=image),
        "magi": video(Magi.from_pretrained(MAGI), 48, image=image, **SMALL),
    }


def test_skyreels_makes_the_same_video(expected, skyreels, default_dtype):
    model = SkyReels.from_pretrained(skyreels)
    assert dtypes(model.network.transformer, model.vae.vae, model.text_encoder.encoder) == {torch.float32}
    assert torch.equal(video(model, 37, image=expected["image"]), expected["skyreels"])
    assert torch.get_default_dtype() == default_dtype


def test_magi_makes_the_same_video(expected, default_dtype):
    model = Magi.from_pretrained(MAGI)
    assert dtypes(model.dit, model.vae, model.text_encoder.encoder) == {torch.float32}
    assert torch.equal(video(model, 48, image=expected["image"], **SMALL), expected["magi"])
    assert torch.get_default_dtype() == default_dtype


def test_time_tables_are_float32(default_dtype):
    for num_steps in (12, 16):
        assert timesteps(num_steps).dtype == step_intervals(num_steps).dtype == torch.float32


def test_random_weights_have_the_types_of_real_ones(skyreels, default_dtype):
    magi, other = Magi.from_random(checkpoint=MAGI), SkyReels.from_random(checkpoint=skyreels)
    assert dtypes(magi.dit, magi.vae, other.network.transformer, other.vae.vae) == {torch.float32}
    assert video(magi, 24, num_steps=4, height=32, width=32).shape == (24, 32, 32, 3)
    assert video(other, 5).shape == (5, 32, 32, 3)

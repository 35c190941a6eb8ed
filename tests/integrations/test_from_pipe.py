"""Our own pipelines over the weights of a loaded one of diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, SkyReelsV2DiffusionForcingPipeline, WanPipeline

from flowcache import Method, generate
from flowcache.models.skyreels import SkyReels
from flowcache.models.wan import Wan
from tests.methods import every_k
from tests.models.skyreels_pipeline import SETTINGS, write_checkpoint

PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("skyreels"))


@pytest.fixture
def pipe(checkpoint) -> SkyReelsV2DiffusionForcingPipeline:
    from diffusers import SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
    from transformers import AutoTokenizer, UMT5EncoderModel

    return SkyReelsV2DiffusionForcingPipeline(
        tokenizer=AutoTokenizer.from_pretrained(checkpoint / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder"),
        transformer=SkyReelsV2Transformer3DModel.from_pretrained(checkpoint / "transformer"),
        vae=AutoencoderKLWan.from_pretrained(checkpoint / "vae"),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0),
    )


def test_it_makes_what_the_loaded_checkpoint_makes(checkpoint, pipe):
    model = SkyReels.from_pipe(pipe, **SETTINGS)
    assert model.sampling == SkyReels.from_pretrained(checkpoint).sampling
    assert model.network.transformer is pipe.transformer
    kinds = [type(module) for module in pipe.vae.modules()]
    method = every_k(every=2, warmup_steps=1)
    videos = [
        torch.cat(list(generate(each, PROMPT, 21, method))) for each in (model, SkyReels.from_pretrained(checkpoint))
    ]
    assert torch.equal(*videos)
    assert [type(module) for module in pipe.vae.modules()] == kinds, "the pipeline's own VAE was changed"


def test_the_shift_is_the_schedulers_and_settings_count_before_it(pipe):
    pipe.scheduler.register_to_config(flow_shift=5.0)
    assert SkyReels.from_pipe(pipe).sampling.shift == 5.0
    assert SkyReels.from_pipe(pipe, shift=3.0, num_steps=7).sampling.num_steps == 7
    with pytest.raises(ValueError, match="SkyReels-V2 has no setting 'steps'; did you mean"):
        SkyReels.from_pipe(pipe, steps=3)


def test_what_does_not_fit_is_refused(pipe):
    with pytest.raises(ValueError, match="Wan needs a pipeline with transformer of WanTransformer3DModel, and that of"):
        Wan.from_pipe(pipe)
    with pytest.raises(ValueError, match="SkyReels needs a pipeline with transformer"):
        SkyReels.from_pipe(object())
    pipe.transformer._hf_hook = object()
    with pytest.raises(ValueError, match="moves its parts in and out by itself"):
        SkyReels.from_pipe(pipe)


@pytest.mark.slow
def test_causal_wan_of_a_loaded_folder():
    folder = "experiments/embedded/wan_teacher"
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(pipe, WanPipeline)
    own = Wan.from_pretrained(folder)
    model = Wan.from_pipe(pipe, **{name: getattr(own.sampling, name) for name in vars(own.sampling)})
    short = {"num_steps": 2}
    videos = [torch.cat(list(generate(each, PROMPT, 9, Method(), **short))) for each in (model, own)]
    assert torch.equal(*videos)

"""Stock pipelines of diffusers with a method applied: what they make is what the suite's own pipeline makes."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FirstBlockCacheConfig,
    MagCacheConfig,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    TaylorSeerCacheConfig,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.hooks._helpers import TransformerBlockRegistry
from PIL import Image
from torch import Tensor

from baselines.every_k import EveryK
from baselines.uniform import Uniform
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.integrations import diffusers as integration
from flowcache.integrations.diffusers import apply_flowcache, register_blocks
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.methods import named, plan
from flowcache.models.skyreels import Sampling, SkyReels
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.unipc import noise_levels
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.controlled import Controlled
from flowcache.reuse.never import Never
from flowcache.reuse.placed import Placed
from flowcache.sampler import IdlePart, sample
from flowcache.trace import Trace
from tests.models.skyreels_goldens import SMALL, transformer
from tests.models.skyreels_pipeline import tiny_vae
from tests.models.wan_goldens import config

STEPS, SHIFT, GUIDANCE = 8, 8.0, 3.0


class OurLevels(UniPCMultistepScheduler):
    """diffusers' own levels begin a little higher than the released code's, which the suite takes."""

    def set_timesteps(self, num_inference_steps: int, device: object = None, **_: object) -> None:
        super().set_timesteps(num_inference_steps, device)
        self.sigmas, times = noise_levels(num_inference_steps, SHIFT)
        self.timesteps = torch.tensor(times)


def pipeline(kind: type[DiffusionPipeline] = SkyReelsV2DiffusionForcingPipeline) -> DiffusionPipeline:
    scheduler = OurLevels(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
    beside = {"in_channels": 36} if kind in (SkyReelsV2ImageToVideoPipeline, WanImageToVideoPipeline) else {}
    if kind is SkyReelsV2ImageToVideoPipeline:  # embeddings of the image beside the caption's
        shape = transformer().config
        width = shape.num_attention_heads * shape.attention_head_dim
        beside |= {"image_dim": 8, "added_kv_proj_dim": width}
    if kind in (SkyReelsV2Pipeline, SkyReelsV2ImageToVideoPipeline):
        beside |= {"inject_sample_info": False}
    network = transformer(**beside)
    if kind in (WanPipeline, WanImageToVideoPipeline):
        torch.manual_seed(0)
        network = WanTransformer3DModel(**config() | {"text_dim": 32} | beside).eval().requires_grad_(False)
    vae = None if kind in (SkyReelsV2DiffusionForcingPipeline, WanPipeline) else tiny_vae().vae
    more = {"image_encoder": None, "image_processor": None} if "in_channels" in beside else {}
    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": vae,
        "scheduler": scheduler,
        "transformer": network,
        **more,
    }
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def features() -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(1, 512, 32, generator=random) for _ in range(2)]


def made(pipe: DiffusionPipeline, num_frames: int = 21, **options: object) -> Tensor:
    """Latents [C, f, h, w] of a video of chunks of two latent frames."""
    prompt, negative = features()
    call = {"height": 32, "width": 32, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "prompt": None}
    call |= {"prompt_embeds": prompt, "negative_prompt_embeds": negative, "output_type": "latent"}
    if "DiffusionForcing" in type(pipe).__name__:
        call |= {"ar_step": 2, "causal_block_size": 2}
    random = torch.Generator().manual_seed(0)
    return pipe(num_frames=num_frames, generator=random, **call | options).frames[0]


def ours(method: Method, num_frames: int = 21, **settings: object) -> tuple[Tensor, Trace]:
    """The same video, by the suite's pipeline. Windows hand latents on, as the stock pipeline's do."""
    captions = features()
    model = SkyReels(SkyReelsNetwork(transformer()), None, None, Sampling(**SMALL | {"num_steps": STEPS}))
    model._encode = lambda text, name="prompt": captions[name != "prompt"]
    settings = {"guidance_scale": GUIDANCE, "shift": SHIFT, "corrector": "published", **settings}
    trace = Trace()
    generation = model.generation("a cat", num_frames, method, 0, **settings)
    return torch.cat([latent for _, latent in sample(generation, trace)], dim=1), trace


METHODS = {
    "vanilla_kv": Method(),
    "hold": Method(reuse=EveryK(every=2, warmup_steps=1)),
    "line of residuals": Method(reuse=EveryK(every=2.5, warmup_steps=1), forecast=Linear(damping=0.5)),
    "velocity": Method(reuse=EveryK(every=2, warmup_steps=1), forecast=Hold(quantity="velocity")),
    "flowcache": Method(reuse=Chunkwise(threshold=0.5, warmup_steps=2)),
    "flowcast": Method(
        reuse=Placed(share=0.35, plan=plan("skyreels_embedded")), forecast=Linear(damping=0.5, correction=1)
    ),
    "flowcast_online": Method(reuse=Controlled(share=0.5), forecast=Linear(damping=0.9, correction=2)),
    "budget": Method(reuse=Chunkwise(threshold=0.5, warmup_steps=2), kv=KvPolicy(select=Joint(), budget="1 chunk")),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:the plan skyreels_embedded was made for another grid")
def test_a_hooked_pipeline_makes_what_our_own_makes(name):
    expected, trace = ours(METHODS[name])
    with apply_flowcache(pipeline(), METHODS[name]) as cache:
        latents = made(cache.pipe)
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)
    assert [(e.row, e.chunk, e.step, e.action) for e in cache.trace.entries] == [
        (e.row, e.chunk, e.step, e.action) for e in trace.entries
    ]
    assert cache.trace.remarks == trace.remarks
    assert name == "vanilla_kv" or cache.trace.computed_fraction < 1


@pytest.mark.parametrize("name", ["hold", "flowcache", "flowcast"])
@pytest.mark.filterwarnings("ignore:the plan skyreels_embedded was made for another grid")
def test_windows_one_after_another_too(name):
    expected, trace = ours(METHODS[name], 37)
    with apply_flowcache(pipeline(), METHODS[name]) as cache:
        latents = made(cache.pipe, 37, base_num_frames=21, overlap_history=5)
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)
    assert cache.trace.computed_rows() == trace.computed_rows()


@pytest.mark.parametrize("options", [{}, {"ar_step": 0}, {"ar_step": 0, "causal_block_size": None}])
def test_a_method_that_computes_everything_makes_what_the_stock_pipeline_makes(options):
    """Through the cache to rounding; where all frames attend to each other the forward is diffusers' own."""
    pipe = pipeline()
    expected = made(pipe, **options)
    with apply_flowcache(pipe, "vanilla"):
        latents = made(pipe, **options)
    if options.get("causal_block_size", 2) is None:
        assert torch.equal(latents, expected)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(made(pipe, **options), expected), "remove() leaves something behind"
    assert "step" not in vars(pipe.scheduler)
    assert "check_inputs" not in vars(pipe)


def test_frames_that_all_attend_to_each_other_compute_together_or_not():
    pipe, sync = pipeline(), {"ar_step": 0, "causal_block_size": None}
    expected = made(pipe, **sync)
    for forecast in (Hold(), Linear(quantity="clean"), Linear(correction=1)):
        with apply_flowcache(pipe, Method(reuse=EveryK(every=2, warmup_steps=2), forecast=forecast)) as cache:
            latents = made(pipe, **sync)
            again = made(pipe, **sync)
        assert torch.equal(latents, again)
        assert [entry.action == "compute" for entry in cache.trace.entries] == [1, 1, 0, 1, 0, 1, 0, 1]
        assert 0 < (latents - expected).square().mean() < expected.square().mean()
    with apply_flowcache(pipe, Method(reuse=Uniform(threshold=0.5, warmup_steps=2))) as cache:
        made(pipe, **sync)
    assert 0 < cache.trace.computed_fraction < 1


def test_wans_pipeline_skips_whole_steps():
    pipe = pipeline(WanPipeline)
    expected = made(pipe)
    with apply_flowcache(pipe, "vanilla"):
        assert torch.equal(made(pipe), expected)
    method = Method(reuse=EveryK(every=2, warmup_steps=2), forecast=Linear(correction=1))
    with apply_flowcache(pipe, method) as cache:
        latents = made(pipe)
        assert not torch.equal(latents, expected)
        assert torch.equal(made(pipe), latents)
    assert cache.trace.computed_fraction == 5 / 8
    assert cache.trace.flops > 0
    assert torch.equal(made(pipe), expected)


@pytest.mark.parametrize("kind", [SkyReelsV2Pipeline, SkyReelsV2ImageToVideoPipeline, WanImageToVideoPipeline])
def test_the_other_pipelines_skip_whole_steps_several_videos_at_once_too(kind):
    pipe = pipeline(kind)
    options = {} if kind is SkyReelsV2Pipeline else {"image": Image.new("RGB", (32, 32), "red")}
    if kind is SkyReelsV2ImageToVideoPipeline:
        embeddings = torch.randn(1, 257, 8)
        pipe.encode_image = lambda image, device: embeddings
    expected = made(pipe, num_videos_per_prompt=2, **options)
    for method in (Method(), Method(reuse=EveryK(every=2, warmup_steps=2), forecast=Linear(correction=1))):
        with apply_flowcache(pipe, method) as cache:
            latents = made(pipe, num_videos_per_prompt=2, **options)
        assert torch.equal(latents, expected) == (not method.reuse.skips)
        assert latents.isfinite().all()
        assert cache.trace.computed_fraction == (5 / 8 if method.reuse.skips else 1)


def test_each_branch_forecasts_by_itself():
    """Guidance 1 is the prompt's branch alone; another negative prompt changes nothing in it."""
    method = Method(reuse=EveryK(every=2, warmup_steps=1))
    with apply_flowcache(pipeline(), method) as cache:
        one = made(cache.pipe, guidance_scale=1.0)
        two = made(cache.pipe, guidance_scale=1.0 + 1e-6)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    assert not torch.equal(one, made(cache.pipe, guidance_scale=1.0))


def test_an_image_and_a_video_to_continue():
    image = torch.rand(1, 3, 32, 32)
    frames = [torch.randint(0, 256, (32, 32, 3)).numpy().astype("uint8") for _ in range(21)]
    calls = {
        SkyReelsV2DiffusionForcingImageToVideoPipeline: {"image": image, "ar_step": 0, "causal_block_size": None},
        SkyReelsV2DiffusionForcingVideoToVideoPipeline: {
            "video": frames,
            "num_frames": 37,
            "base_num_frames": 21,
            "overlap_history": 5,
        },
    }
    for kind, options in calls.items():
        pipe = pipeline(kind)
        expected = made(pipe, **options)
        for method in (Method(), Method(reuse=EveryK(every=2, warmup_steps=1), forecast=Linear(correction=1))):
            with apply_flowcache(pipe, method) as cache:
                latents = made(pipe, **options)
            assert latents.shape == expected.shape
            close = torch.allclose(latents, expected, rtol=1e-3, atol=1e-3)
            assert close == (not method.reuse.skips), kind.__name__
            assert (cache.trace.computed_fraction < 1) == method.reuse.skips


def test_a_run_that_skipped_nothing_says_so():
    with apply_flowcache(pipeline(), Method(reuse=Chunkwise(threshold=0.0, warmup_steps=1))) as cache:
        with pytest.warns(IdlePart, match="Chunkwise skipped nothing"):
            made(cache.pipe)
        assert cache.trace.remarks == ["Chunkwise skipped nothing: every chunk computed in every step, as vanilla does"]


def test_a_run_that_was_broken_off_leaves_the_next_one_whole():
    method = Method(reuse=EveryK(every=2, warmup_steps=1), forecast=Linear(correction=1))
    with apply_flowcache(pipeline(), method) as cache:
        expected = made(cache.pipe)

        def stop(pipe: object, step: int, time: object, kept: dict[str, object]) -> dict[str, object]:
            if step == 3:
                raise KeyboardInterrupt
            return kept

        with pytest.raises(KeyboardInterrupt):
            made(cache.pipe, callback_on_step_end=stop)
        assert torch.equal(made(cache.pipe), expected)


def test_a_transformer_alone():
    pipe = pipeline()
    method = Method(reuse=EveryK(every=2, warmup_steps=1))
    with apply_flowcache(pipe, method):
        expected = made(pipe)
    pipe.scheduler.set_timesteps(STEPS)
    with apply_flowcache(pipe.transformer, method, timesteps=pipe.scheduler.timesteps, ar_step=2) as cache:
        assert torch.equal(made(pipe), expected)
        assert torch.equal(made(pipe), expected)
    assert cache.trace.computed_fraction < 1
    with pytest.raises(ValueError, match=r"does not say its steps; give timesteps=scheduler\.timesteps"):
        apply_flowcache(pipe.transformer, method)
    with pytest.raises(ValueError, match="a transformer alone does not see; give the whole pipeline"):
        apply_flowcache(pipe.transformer, "flowcast_fast", timesteps=pipe.scheduler.timesteps)


# What does not fit is said.


def test_twice_and_beside_another_cache_is_refused():
    pipe = pipeline()
    with apply_flowcache(pipe, "vanilla"), pytest.raises(ValueError, match=r"applied to this transformer already"):
        apply_flowcache(pipe, "vanilla")
    pipe.transformer.enable_cache(TaylorSeerCacheConfig())
    with pytest.raises(ValueError, match=r"TaylorSeerCacheConfig is enabled .*disable_cache\(\) first"):
        apply_flowcache(pipe, "vanilla")


def test_what_it_does_not_fit_is_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="FlowCache does not fit Linear"):
        apply_flowcache(torch.nn.Linear(2, 2), "vanilla")
    with pytest.raises(ValueError, match=r"method='flowcast' is unknown; did you mean"):
        apply_flowcache(pipe, "flowcast")
    with pytest.raises(ValueError, match="XCache decides by estimates of the clean latent"):
        apply_flowcache(pipe, Method(reuse=named("x_cache", "skyreels").reuse))
    with apply_flowcache(pipe, "vanilla"):
        with pytest.raises(ValueError, match="ar_step=2 has frames at steps of their own"):
            made(pipe, causal_block_size=1)
        with pytest.raises(ValueError, match=r"5 latent frames are not whole chunks of causal_block_size=2"):
            made(pipe, 17)
        with pytest.raises(ValueError, match="2 videos at once"):
            made(pipe, num_videos_per_prompt=2)
    budget = Method(kv=KvPolicy(select=Joint(), budget="1 chunk"))
    with (
        apply_flowcache(pipe, budget),
        pytest.raises(ValueError, match="frames that all attend to each other have none"),
    ):
        made(pipe, ar_step=0, causal_block_size=1)
    two = pipeline(WanPipeline)
    two.register_modules(transformer_2=two.transformer)
    with pytest.raises(ValueError, match="has two transformers"):
        apply_flowcache(two, "vanilla")


def test_a_scheduler_that_was_exchanged_is_refused():
    pipe = pipeline()
    with apply_flowcache(pipe, Method(reuse=Never(), forecast=Linear(correction=1))) as cache:
        step = pipe.scheduler
        pipe.scheduler = OurLevels(prediction_type="flow_prediction", use_flow_sigmas=True)
        with pytest.raises(ValueError, match="scheduler was exchanged"):
            made(pipe)
        pipe.scheduler = step
    assert cache.trace.entries == []
    pipe.scheduler = UniPCMultistepScheduler()
    with pytest.raises(ValueError, match="UniPCMultistepScheduler does not follow a flow"):
        apply_flowcache(pipe, Method(forecast=Linear(correction=1)))


@pytest.mark.parametrize("found", [None, "too old"])
def test_the_message_names_the_extra(monkeypatch, found):
    monkeypatch.setitem(sys.modules, "diffusers.hooks", found)
    with pytest.raises(ImportError, match=r"install it with `pip install flowcache\[skyreels\]`"):
        importlib.reload(integration)


# diffusers' own caches.

OWN = [
    FirstBlockCacheConfig(threshold=1e9),
    MagCacheConfig(threshold=1e9, max_skip_steps=1, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS),
    TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, cache_identifiers=[r"^blocks\..*\.attn\d$"]),
]


@pytest.mark.parametrize("config", OWN, ids=lambda config: type(config).__name__)
def test_diffusers_own_caches_run_on_skyreels(config):
    pipe = pipeline()
    expected = made(pipe, ar_step=0)
    register_blocks()
    pipe.transformer.enable_cache(config)
    latents = made(pipe, ar_step=0)
    assert latents.isfinite().all()
    assert not torch.allclose(latents, expected, rtol=1e-3, atol=1e-3), "it skips nothing"
    pipe.transformer.disable_cache()
    assert torch.equal(made(pipe, ar_step=0), expected)


def test_two_of_them_know_nothing_of_its_block_and_one_finds_no_layer(monkeypatch):
    """As diffusers is; where this fails, ``register_blocks`` and its docs have done their duty."""
    known = TransformerBlockRegistry._registry
    registry = {kind: metadata for kind, metadata in known.items() if "SkyReels" not in str(kind)}
    monkeypatch.setattr(TransformerBlockRegistry, "_registry", registry)
    for unknowing in OWN[:2]:
        with pytest.raises(ValueError, match="SkyReelsV2TransformerBlock'> not registered"):
            pipeline().transformer.enable_cache(unknowing)
    pipe = pipeline()
    expected = made(pipe, ar_step=0)
    pipe.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2))
    assert torch.equal(made(pipe, ar_step=0), expected)

"""A caching method put on a stock pipeline of diffusers, and taken off again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import StateManager

from flowcache.integrations.diffusers.chunks import ChunkHook
from flowcache.integrations.diffusers.session import Session
from flowcache.integrations.diffusers.steps import ForecastStep
from flowcache.integrations.diffusers.whole import ABLE, Whole, WholeHook, WholeState
from flowcache.method import Method
from flowcache.methods import named
from flowcache.trace import Trace

NAME = "flowcache"  # of the hooks
FORCING = (
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
)
PLAIN = (SkyReelsV2Pipeline, SkyReelsV2ImageToVideoPipeline, WanPipeline, WanImageToVideoPipeline)


class FlowCache:
    """A method that is applied. As a context manager it takes the method off at the end.

    Attributes:
        pipe: what it is applied to, a pipeline or a transformer.
        method: what decides; options of attention are the pipeline's.
    """

    def __init__(self, pipe: Any, session: Session, undo: Sequence[Callable[[], None]]) -> None:
        self.pipe, self._session, self._undo = pipe, session, list(undo)
        self.method = session.method

    @property
    def trace(self) -> Trace:
        """Of the last video: what computed, its FLOPs, and ``remarks``, what had no effect."""
        return self._session.trace

    def remove(self) -> None:
        """Leave the pipeline as it was; once is enough."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> FlowCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def apply_flowcache(
    pipe_or_transformer: DiffusionPipeline | torch.nn.Module,
    method: Method | str = "flowcast_fast",
    *,
    setting: str = "paper",
    timesteps: Sequence[float] | torch.Tensor | None = None,
    ar_step: int = 0,
) -> FlowCache:
    """Put a caching method on a pipeline, for all of its calls until ``remove``.

    Args:
        pipe_or_transformer: SkyReels-V2's diffusion-forcing pipelines (text, image or video to video): with
            ``causal_block_size`` chunks decide for themselves and go through a KV cache. There without, and on
            SkyReels-V2's and Wan's other pipelines, a step computes the whole window or none of it. Or their
            transformer, where something else than such a pipeline drives it.
        method: one of ``flowcache.methods.names()``, or a Method.
        setting: whose options a name has: "paper", or "embedded" for the small models of the repository.
        timesteps: for a transformer alone: of the steps, such as ``scheduler.timesteps``. It then forecasts what the
            blocks add, for nobody sees what guidance makes of it.
        ar_step: for a transformer alone: rows from a chunk's start to the next one's.

    Raises ValueError for what does not fit, before anything is changed: another pipeline, one that is hooked already,
    or a method that it cannot follow.
    """
    pipe = pipe_or_transformer if isinstance(pipe_or_transformer, DiffusionPipeline) else None
    transformer = pipe_or_transformer if pipe is None else _transformer_of(pipe)
    _check_transformer(transformer)
    if isinstance(method, str):
        family = "skyreels" if isinstance(transformer, SkyReelsV2Transformer3DModel) else "wan_multistep"
        method = named(method, family, setting)
    session = Session(method, ABLE)
    _check_method(session, None if pipe is None else pipe.scheduler)
    if pipe is None and timesteps is None:
        raise ValueError(
            "a transformer alone does not say its steps; give timesteps=scheduler.timesteps, or the whole pipeline"
        )
    if pipe is None:
        times = [float(time) for time in timesteps]
        session.opener = lambda: (times, ar_step)
        return FlowCache(transformer, session, _hook(transformer, session))
    undo = _hook(transformer, session)
    if session.guided:
        pipe.scheduler.step = ForecastStep(pipe.scheduler, session)
        undo.append(partial(vars(pipe.scheduler).pop, "step"))
    undo.append(_tap(pipe, "check_inputs", before=partial(_begin, pipe, session)))
    if isinstance(pipe, FORCING):
        undo.append(_tap(pipe, "generate_timestep_matrix", before=partial(_open_window, pipe, session)))
    else:
        session.opener = lambda: (pipe.scheduler.timesteps.tolist(), 0)
    return FlowCache(pipe, session, undo)


def _hook(transformer: torch.nn.Module, session: Session) -> list[Callable[[], None]]:
    """Hooks on the transformer and its blocks, by diffusers' registry, and what takes them off."""
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    if isinstance(transformer, SkyReelsV2Transformer3DModel):
        registry.register_hook(ChunkHook(session), NAME)
    whole, states, last = Whole(session, transformer.config), StateManager(WholeState), len(transformer.blocks) - 1
    for place, block in enumerate(transformer.blocks):
        hook = WholeHook(whole, states, is_first=place == 0, is_last=place == last)
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, NAME)
    registry.invalidate_child_registries_cache()

    def remove() -> None:
        registry.remove_hook(NAME, recurse=True)
        registry.invalidate_child_registries_cache()

    return [remove]


def _tap(pipe: DiffusionPipeline, name: str, before: Callable[..., None]) -> Callable[[], None]:
    """Have a pipeline's method call ``before`` with its arguments first; returns what undoes it."""
    own = getattr(pipe, name)
    signature = inspect.signature(own)

    def tapped(*args: Any, **options: Any) -> Any:
        before(**signature.bind(*args, **options).arguments)
        return own(*args, **options)

    setattr(pipe, name, tapped)
    return partial(delattr, pipe, name)


def _begin(pipe: DiffusionPipeline, session: Session, **_: Any) -> None:
    """A call of the pipeline begins, whatever became of the one before."""
    if session.guided and "step" not in vars(pipe.scheduler):
        raise ValueError(
            "the pipeline's scheduler was exchanged after FlowCache was applied; remove() it and apply it again"
        )
    session.begin()


def _open_window(
    pipe: DiffusionPipeline,
    session: Session,
    num_latent_frames: int,
    step_template: torch.Tensor,
    ar_step: int = 5,
    num_pre_ready: int = 0,
    **_: Any,
) -> None:
    """A window of a diffusion-forcing pipeline begins."""
    for frame, step in enumerate(session.stepped[-num_latent_frames:]):
        step.frame = frame
    session.stepped.clear()
    block = pipe.transformer.config.num_frame_per_block
    session.open(num_latent_frames, step_template.long().tolist(), ar_step, num_pre_ready, block)


def _transformer_of(pipe: DiffusionPipeline) -> torch.nn.Module:
    if not isinstance(pipe, FORCING + PLAIN):
        known = ", ".join(kind.__name__ for kind in FORCING + PLAIN)
        raise ValueError(f"FlowCache does not fit {type(pipe).__name__}; it fits {known}")
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError(
            f"this {type(pipe).__name__} has two transformers (Wan 2.2's), and what one computed says nothing of the "
            "other's; choose a pipeline of one, such as Wan 2.1's"
        )
    return pipe.transformer


def _check_transformer(transformer: Any) -> None:
    """Refuse one that FlowCache does not fit, or that is cached already. Raises ValueError."""
    if not isinstance(transformer, SkyReelsV2Transformer3DModel | WanTransformer3DModel):
        raise ValueError(
            f"FlowCache does not fit {type(transformer).__name__}; give a pipeline of SkyReels-V2 or Wan, or its "
            "transformer"
        )
    if NAME in HookRegistry.check_if_exists_or_initialize(transformer.blocks[0]).hooks:
        raise ValueError("FlowCache is applied to this transformer already; remove() that first")
    if transformer.is_cache_enabled:
        raise ValueError(
            f"{type(transformer._cache_config).__name__} is enabled on this transformer, and two caches would skip on "
            "top of each other; transformer.disable_cache() first"
        )
    if isinstance(transformer, SkyReelsV2Transformer3DModel) and hasattr(transformer, "_hf_hook"):
        raise ValueError(
            "the pipeline moves its transformer in and out by itself (enable_model_cpu_offload), which FlowCache's "
            "hook on it does not outlive; keep it on its device: pipe.to(...)"
        )


def _check_method(session: Session, scheduler: Any) -> None:
    """Refuse what no window can follow; the rest is told with the first. Raises ValueError."""
    method = session.method
    if method.reuse.distance == "clean":
        raise ValueError(
            f"{type(method.reuse).__name__} decides by estimates of the clean latent, which a hooked pipeline does not "
            "keep; choose another method, or FlowCache's own pipeline (SkyReels.from_pipe)"
        )
    if not session.guided:
        return
    if scheduler is None:
        raise ValueError(
            f"quantity={session.quantity!r} is what guidance makes of all branches, which a transformer alone does not "
            "see; give the whole pipeline, or a forecast of quantity 'residual' and correction=0"
        )
    if getattr(scheduler.config, "prediction_type", None) != "flow_prediction" and not hasattr(
        scheduler, "scale_noise"
    ):
        raise ValueError(
            f"{type(scheduler).__name__} does not follow a flow, and forecasts of the {session.quantity} need one; "
            "choose a scheduler with prediction_type='flow_prediction', or a forecast of quantity 'residual'"
        )

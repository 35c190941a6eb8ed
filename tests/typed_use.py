"""The public names as another program uses them: for mypy (``make lint``), which runs it in strict mode; never run."""

from __future__ import annotations

from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from flowcache import (
    Chunkwise,
    Hold,
    Joint,
    KvPolicy,
    Linear,
    Method,
    Never,
    Placed,
    Trace,
    export_to_video,
    generate,
    named,
    progress_bar,
    sample,
    to_pil,
)
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from flowcache.models.wan import Wan

assert_type(named("flowcast_fast", "magi"), Method)
by_hand = Method(reuse=Chunkwise(threshold=0.015, warmup_steps=5), forecast=Hold(), kv=KvPolicy(select=Joint()))
ours = Method(reuse=Placed(share=0.35, plan=None), forecast=Linear(correction=2))
vanilla = Method(reuse=Never())


def use(model: Magi | SkyReels | Wan) -> None:
    trace = Trace()
    frames = list(generate(model, "a cat sleeps", 96, by_hand, seed=1, trace=trace, callback=progress_bar()))
    assert_type(frames, list[torch.Tensor])
    assert_type(trace.flops, int)
    export_to_video(frames, "cat.mp4", fps=24)
    assert_type(to_pil(frames[0]), list[Image])
    for chunk, latent in sample(model.generation("a cat sleeps", 96, ours, 1)):
        assert_type(chunk, int)
        assert_type(latent, torch.Tensor)


def load(folder: str) -> None:
    use(Magi.from_pretrained(folder, device="cuda"))
    use(SkyReels.from_pretrained(folder))
    use(Wan.from_pretrained(folder))


def as_array(frames: torch.Tensor) -> NDArray[np.uint8]:
    return np.asarray(frames.numpy(), np.uint8)

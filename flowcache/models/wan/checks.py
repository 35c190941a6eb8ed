"""Methods and numbers of prompts that do not go with causal Wan's settings, refused before any work."""

from __future__ import annotations

from flowcache.method import Method
from flowcache.models.wan.config import Sampling


def check_settings(sampling: Sampling, method: Method, num_prompts: int = 1) -> None:
    """Refuse, before any work, a method and numbers of prompts that do not go with settings. Raises ValueError."""
    if method.kv.budget is not None:
        taken = {
            "window_frames": (sampling.window_frames, "window_frames='all' and sink_frames=0"),
            "first_frame_alone": (sampling.first_frame_alone, "first_frame_alone=false"),
        }
        for name, (value, without) in taken.items():
            if value:
                raise ValueError(
                    f"budget={method.kv.budget!r} chooses among whole chunks of the whole video, which "
                    f"{name}={value} does not leave; choose budget null, or {without}"
                )
        if num_prompts > 1:
            raise ValueError(
                f"budget={method.kv.budget!r} drops keys that a new prompt encodes anew; choose budget null, or one "
                "prompt"
            )
    if method.kv.select.by_head:
        kind = type(method.kv.select).__name__
        if sampling.rolling:
            raise ValueError(
                f"rolling=true sees its sink as if it were new, and {kind} keeps it at its own time; choose "
                "rolling=false, or another selector"
            )
        if num_prompts > 1:
            raise ValueError(
                f"{kind} drops keys that a new prompt encodes anew; choose another selector, such as kv=full, or one "
                "prompt"
            )
    if num_prompts > 1 and sampling.rolling:
        raise ValueError(
            "rolling=true denoises chunks of several prompts together, and no model is made for that; give one prompt, "
            "or rolling=false"
        )
    if sampling.sink_frames and not method.refresh_clean_kv:
        raise ValueError(
            "refresh_clean_kv=false leaves the keys of a chunk's last noisy step, and a sink of "
            f"{sampling.sink_frames} frames would keep them for the whole video; choose refresh_clean_kv=true, or "
            "sink_frames=0"
        )
    if method.forecast.correction and sampling.solver == "fresh_noise":
        raise ValueError(
            f"correction={method.forecast.correction} takes skipped steps again, and steps with fresh noise forget "
            "what they came from; choose correction=0, or solver='unipc'"
        )

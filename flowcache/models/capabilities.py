"""What a model can do for a method, and the refusal, before any work, of what it cannot."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowcache.forecast.base import Forecast
from flowcache.kernels import AUTO
from flowcache.method import Method
from flowcache.options import either
from flowcache.parallel import Parallel
from flowcache.schedule import Schedule

# The kernels that take a mask of numbers, see flowcache.kernels.
_BIAS_KERNELS = (AUTO, "efficient", "math", "cudnn")


@dataclass(frozen=True)
class Capabilities:
    """Attributes.

    model: its name, for messages.
    distances: that policies may decide by.
    quantities: that can be forecast, the model's own first.
    correctable: those of them of which skipped steps can be corrected.
    guided: those of them that all guidance branches make together, so that no branch can skip by itself.
    motions: kinds of frame differences that policies may ask for.
    decisions: fields of ``flowcache.reuse.base.Decision`` beyond ``compute`` that it can follow.
    heads: its layers attend through their cache, in which each head may keep other frames.
    cacheless: its "native" and "causal" attention compute a window as a whole, without a cache.
    shares_keys: a finished chunk's keys are one guidance branch's in all of them.
    """

    model: str
    distances: tuple[str, ...]
    quantities: tuple[str, ...]
    correctable: tuple[str, ...] = ()
    guided: tuple[str, ...] = ()
    motions: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    heads: bool = False
    cacheless: bool = False
    shares_keys: bool = False

    def quantity(self, forecast: Forecast) -> str:
        """What is forecast: as asked for, or the model's own first, of those that can be corrected if it corrects."""
        if forecast.quantity is None and forecast.correction and self.correctable:
            return self.correctable[0]
        return forecast.quantity or self.quantities[0]


def check_method(
    method: Method, schedule: Schedule, able: Capabilities, attention_backend: str = AUTO, asked_queries: int = 0
) -> None:
    """Refuse a method that does not go with a schedule or a model. Raises ValueError with the reason.

    ``asked_queries``: of a chunk, that the method's selector looks at, under its budget.
    """
    policy, kind, store = method.reuse, type(method.reuse).__name__, method.kv.store
    policy.check_schedule(schedule)
    if policy.distance is not None and policy.distance not in able.distances:
        raise unknown_distance(policy.distance, able)
    if unable := [use for use in policy.uses if use not in able.decisions]:
        raise ValueError(f"{able.model} cannot follow {kind} with these options: it decides on {_WORDS[unable[0]]}")
    if policy.motion is not None and policy.motion not in able.motions:
        raise ValueError(f"motion={policy.motion!r} is unknown to {able.model}; choose {either(able.motions)}")
    if "tokens" in policy.uses and asked_queries:
        raise ValueError(
            f"{kind} computes chunks in part, and {type(method.kv.select).__name__} asks queries of a chunk, which may "
            "not run, what to keep; choose budget=null, or a selector that asks none, such as kv=sink_recent"
        )
    if policy.needs_window and (method.attention == "cached" or not able.cacheless):
        raise ValueError(
            f"{kind} may skip a chunk's first step, which needs a window that is computed as a whole; choose "
            f"attention='native' or 'causal'{'' if able.cacheless else f', which {able.model} does not have'}"
        )
    quantity = able.quantity(method.forecast)
    if quantity not in able.quantities:
        raise ValueError(
            f"quantity={quantity!r} does not exist on {able.model}; choose {either(able.quantities)}, or null for "
            f"{able.quantity(replace(method.forecast, quantity=None))!r}"
        )
    if method.forecast.correction and quantity not in able.correctable:
        raise ValueError(
            f"correction={method.forecast.correction} takes skipped steps again, which {able.model} cannot do of its "
            f"{quantity}; choose {f'quantity={either(able.correctable)}, or ' if able.correctable else ''}correction=0"
        )
    if quantity in able.guided and (policy.needs_window or "branches" in policy.uses):
        raise ValueError(
            f"{kind} has each guidance branch skip by itself, or skips a chunk's first step, and quantity={quantity!r} "
            "is what all branches make together of the chunk's own steps; choose "
            f"quantity={either([each for each in able.quantities if each not in able.guided])}"
        )
    if able.cacheless and method.attention != "cached":
        if not policy.whole_rows(schedule):
            raise ValueError(
                f"attention={method.attention!r} computes a window as a whole on {able.model}, and {kind} computes "
                "only some of a row's chunks; choose attention='cached'"
            )
        if quantity in able.guided and policy.skips:
            raise ValueError(
                f"quantity={quantity!r} is of a chunk's own steps, and with attention={method.attention!r} {kind} may "
                f"skip a chunk's first one; choose attention='cached', or correction=0 and quantity="
                f"{either([each for each in able.quantities if each not in able.guided])}"
            )
        if method.kv.budget is not None:
            raise ValueError(
                f"budget={method.kv.budget!r} bounds the cache, and attention={method.attention!r} has none; choose "
                "attention='cached'"
            )
        if method.kv.select.by_head:
            raise ValueError(
                f"{type(method.kv.select).__name__} says what heads keep in the cache, and "
                f"attention={method.attention!r} has none; choose attention='cached'"
            )
        if store.settles or not store.lossless:
            raise ValueError(
                f"{type(store).__name__} is how a cache is stored, and attention={method.attention!r} has "
                "none; choose attention='cached'"
            )
    if method.kv.select.by_head and not able.heads:
        raise ValueError(
            f"{type(method.kv.select).__name__} has each head keep other frames, which {able.model} cannot do; choose "
            "kv=joint, or another selector with a budget"
        )
    adding = [part for part, adds in ((method.kv.select, method.kv.select.biases), (store, store.corrects)) if adds]
    if adding and attention_backend not in _BIAS_KERNELS:
        without = ", or correction=false" if adding == [store] else ""
        raise ValueError(
            f"{type(adding[0]).__name__} adds to keys' logits, which attention_backend={attention_backend} does not "
            f"take; choose {either(_BIAS_KERNELS)}{without}"
        )


def check_parallel(
    parallel: Parallel, method: Method, able: Capabilities, num_branches: int, num_heads: int, tokens_per_frame: int
) -> None:
    """Refuse to share a video out where a process would lack what the method or the model needs. Raises ValueError.

    ``num_heads`` are the network's key-value heads.
    """
    if parallel.kind == "none":
        return
    asked, kind, select = f"parallel={parallel.kind}", type(method.reuse).__name__, method.kv.select
    if "tokens" in method.reuse.uses:
        raise ValueError(
            f"{asked}: {kind} computes single tokens of a chunk, by what all of them and all branches did, of which "
            "a process has its share; choose parallel=none, or a policy that computes chunks as a whole"
        )
    if parallel.by_branch:
        if num_branches != parallel.world:
            guided = f"{num_branches} guidance branches" if num_branches > 1 else "no guidance branches"
            raise ValueError(
                f"{asked} needs as many processes as branches, and {able.model} has {guided} with these settings for "
                f"{parallel.world} processes; choose {'2 processes, or ' if num_branches > 1 else ''}parallel=heads"
            )
        if "branches" in method.reuse.uses:
            raise ValueError(
                f"{asked}: {kind} has each guidance branch skip by itself, and the other process would wait for it; "
                "choose parallel=heads, or a policy that decides for all branches"
            )
        store = method.kv.store
        if able.shares_keys and store.settles and not store.lossless:
            raise ValueError(
                f"{asked}: on {able.model} all branches hold one's keys of finished chunks, and codes of "
                f"{type(store).__name__} are handed to no other process; choose parallel=heads, or "
                "kv/store=full_precision, bfloat16 or host"
            )
        return
    if num_heads % parallel.world:
        raise ValueError(
            f"{asked}: {num_heads} key-value heads cannot be shared out among {parallel.world} processes; choose a "
            f"number that divides them: {either([n for n in range(2, num_heads + 1) if num_heads % n == 0])}"
        )
    if tokens_per_frame < parallel.world:
        raise ValueError(
            f"{asked}: frames of {tokens_per_frame} tokens cannot be shared out among {parallel.world} processes; "
            "choose fewer"
        )
    if not select.heads_apart and (select.by_head or method.kv.budget is not None):
        raise ValueError(
            f"{asked}: {type(select).__name__} chooses keys by all heads of a layer, and a process has its share of "
            "them; choose parallel=none or branches, or a selector by which each head chooses for itself, such as "
            "kv=joint"
        )


def unknown_distance(distance: str, able: Capabilities) -> ValueError:
    """What a model says of a distance that is none of its own."""
    return ValueError(f"distance={distance!r} is unknown to {able.model}; choose {either(able.distances)}")


_WORDS = {
    "tokens": "single tokens of a chunk",
    "repeat": "chunks that take their last output once more",
    "held": "chunks that do not move (MAGI-1's published TeaCache)",
    "isolated": "chunks that attend to themselves alone (MAGI-1's published TeaCache)",
    "oldest_keys": "what chunks computed in part attend to (MAGI-1's published MotionCache)",
    "branches": "each guidance branch by itself",
}

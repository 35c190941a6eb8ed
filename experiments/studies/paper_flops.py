"""Every method's compute at the paper's setting: ``python -m experiments.paper_flops [model=magi|skyreels|wan]``.

Written to output_dir/tables/ (outputs/tables/ if not given); ``publish=true`` writes to results/tables/ instead.
Counted from shapes: no weights, a few minutes on one core for all models. A method that decides by distances cannot
decide without weights: it follows a *given* schedule, one that leaves the compute that the paper reports, and not the
paper's own decisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
from omegaconf import DictConfig

from baselines.uniform import Uniform
from experiments.job.cli import compose_config
from experiments.job.errors import BadInput, command
from experiments.job.groups import config_files
from experiments.job.method import make_method
from experiments.job.paths import inside_root
from experiments.run.dry_run import KINDS, PFLOP, Count, count
from experiments.show.reported import read_reported
from experiments.show.results import Column, Table, destination, made_by, publishing
from flowcache.kv.policy import KvPolicy
from flowcache.method import VANILLA, Method
from flowcache.reuse.never import Never
from flowcache.schedule import Row, Schedule

MODELS = tuple(path.stem for path in config_files("model"))
STEM = "paper_flops"
KV_BUDGET = "1 chunk"  # FlowCache's compressed rows: B_total of 5 chunks on MAGI-1, a budget of 1 block on SkyReels-V2
_SHARES = 1000  # shares tried for the given schedule; a chunk has 64 steps
_CHARGED = ("denoise", "near_clean", "context")
_PARTS = {"gemm_flops": "GEMM", "self_attention_flops": "self-attention", "cross_attention_flops": "cross-attention"}

Decisions = list[tuple[int, ...]]


def rows_of(model: str, *setting: str) -> Iterator[dict[str, object]]:
    """One row a method, told of as it is made; FLOPs in PFLOPs, shares of vanilla's.

    Args:
        setting: overrides of the paper's setting.
    """
    published = read_reported(model)[0]["pflops"]
    common = (f"model={model}", "setting=paper", "device=meta", *setting)
    vanilla = _count_all(common, VANILLA)
    for name, overrides in _methods():
        config = compose_config([*common, f"method={name}", *overrides])
        method, decisions = make_method(config), "its own"
        if method.reuse.looks_at is None:
            counted = _count_all(common, method) if not method.reuse.skips else count(config, method)
        elif name in published:
            decisions = "given schedule"
            counted = count(config, method, published_schedule(config, common))
        else:
            decisions = "all computed, at most"
            counted = _count_all(common, vanilla_like(method))
        trace = counted.trace
        yield {
            "method": name,
            "kv_budget": method.kv.budget,
            "decisions": decisions,
            "chunk_steps_computed": trace.computed_fraction,
            "executed": trace.flops / PFLOP,
            "executed_share": trace.flops / vanilla.trace.flops,
            "paper_accounting": counted.paper_flops / PFLOP,
            "paper_accounting_share": counted.paper_flops / vanilla.paper_flops,
            "published": published.get(name),
            "published_share": published[name] / published["vanilla"] if name in published else None,
            **{_PARTS[part]: flops / PFLOP for part, flops in trace.flops_by_part().items()},
            **{kind: trace.flops_by_kind().get(kind, 0) / PFLOP for kind in KINDS},
            "kv_cache_gib": trace.kv_bytes_allocated / 2**30,
        }
        print(f"{model}, {name} {' '.join(overrides)}".strip(), flush=True)


def _methods() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every method of conf/method, vanilla first, FlowCache also with its KV cache compressed; and its overrides."""
    names = sorted((path.stem for path in config_files("method")), key=lambda name: not name.startswith("vanilla"))
    for name in names:
        yield name, ()
        if name.startswith("flowcache"):
            yield name, (f"kv.budget={KV_BUDGET}",)


def vanilla_like(method: Method) -> Method:
    """Vanilla with what a method shares with others, and a whole KV cache."""
    return replace(method, reuse=Never(), kv=KvPolicy())


def _count_all(overrides: tuple[str, ...], method: Method) -> Count:
    """Counted once for equal methods."""
    asked = overrides, repr(method)
    if asked not in _counted:
        _counted[asked] = count(compose_config(list(overrides)), method)
    return _counted[asked]


_counted: dict[tuple[tuple[str, ...], str], Count] = {}


def published_schedule(config: DictConfig, common: tuple[str, ...]) -> Decisions:
    """Decisions that leave a configuration's method the share of vanilla's compute that the paper reports of it.

    Args:
        common: its overrides without those of the method.
    """
    published, method = read_reported(config.model.name)[0]["pflops"], make_method(config)
    vanilla, everything = _count_all(common, VANILLA), _count_all(common, vanilla_like(method))
    share = published[config.method.name] / published["vanilla"]
    return evenly(everything, method, share * vanilla.paper_flops / everything.paper_flops)


def evenly(everything: Count, method: Method, share: float) -> Decisions:
    """Decisions that leave a share of a generation's compute, spread evenly.

    A chunk computes its warm-up, its last step, and steps evenly between; as many in every chunk. Where a method
    decides for all chunks together (TeaCache) that holds for the rows of a window, and a chunk that enters the cache
    computes.

    Args:
        everything: the generation with every chunk step computed.
        method: whose ``warmup_steps`` count.
        share: of the compute in the paper's accounting that is wanted; the nearest possible is taken.
    """
    spread = _spread_rows if isinstance(method.reuse, Uniform) else _spread_steps
    tried = (spread(everything.schedule, method, i / _SHARES) for i in range(1, _SHARES + 1))
    distinct = {str(decisions): decisions for decisions in tried}.values()
    return min(distinct, key=lambda decisions: abs(compute_left(everything, decisions) - share))


def compute_left(everything: Count, decisions: Decisions) -> float:
    """The share of the charged compute that decisions leave; a row that computes nothing computes nothing beside."""

    def computed(row: int, kind: str, chunk: int) -> bool:
        return bool(decisions[row]) if kind == "context" else chunk in decisions[row]

    charged = [(row, work) for row, work in everything.trace.work if work.kind in _CHARGED]
    left = sum(work.flops for row, work in charged if computed(row, work.kind, work.chunk))
    return left / sum(work.flops for _, work in charged)


def _spread_steps(schedule: Schedule, method: Method, share: float) -> Decisions:
    computed = _spread(share, schedule.num_steps, method.reuse.warmup_steps)
    return [tuple(step.chunk for step in row.steps if step.step in computed) for row in schedule.rows]


def _spread_rows(schedule: Schedule, method: Method, share: float) -> Decisions:
    decisions: Decisions = []
    for window in schedule.windows:
        computed = _spread(share, len(window.rows), method.reuse.warmup_steps)
        rows = [schedule.rows[index] for index in window.rows]
        decisions += [
            row.chunks if index in computed else _entering(row, method.attention) for index, row in enumerate(rows)
        ]
    return decisions


def _entering(row: Row, attention: str) -> tuple[int, ...]:
    """The chunk that has nothing to reuse yet: through a cache, one that takes its first step."""
    cached = attention == "cached" or row.visible is None
    return tuple(step.chunk for step in row.steps if cached and step.step == 0)


def _spread(share: float, length: int, warmup: int) -> set[int]:
    """A share of so many places: the first ones, and the others evenly over the rest, its last one among them."""
    warmup = max(1, warmup)
    rest = length - warmup
    others = min(rest, max(1, round(share * length) - warmup))
    return {*range(warmup), *(warmup - 1 + (i + 1) * rest // others for i in range(others))}


_COUNTED = (
    "PFLOPs a video, counted from shapes: matrix products of the transformer, multiply-add = 2. Nothing here was run "
    "or timed."
)
_NOTES = (
    "*Executed*: all that this program computes, refreshes of finished chunks, captions and scoring of keys included.",
    "*Paper's accounting*: what reproduces the paper's vanilla. MAGI-1: denoising forwards and near-clean copies. "
    "SkyReels-V2: block-causal attention whatever ran; a forward without cache is charged its whole window.",
    "*Published*: Table 1 of the paper. Shares are of vanilla's compute in the column before.",
    "*Given schedule*: TeaCache and FlowCache decide by distances, which need weights. Here they follow a schedule of "
    "the published compute, **not the paper's own decisions**: each chunk computes its warm-up, its last step and "
    "steps spread evenly between (TeaCache: rows, for all chunks together), as many as leave the published share of "
    "vanilla's compute in the paper's accounting with a whole KV cache. In rows without a KV budget that share is "
    "therefore the published one by construction, to the nearest step; what they show is how much is executed for it, "
    "and what that is made up of. With weights, `python run.py device=meta replay=<trace>` counts a run's own "
    "decisions.",
    f"*KV budget*: finished chunks keep {KV_BUDGET}, as in FlowCache's rows of Table 1. The schedule is that of the "
    "row without one, and the share follows from it: MAGI-1's accounting leaves out the attention that compression "
    "saves, which puts the share below the published one; SkyReels-V2's counts it whatever ran, which keeps it there.",
)
_METHOD = (Column("method", "method"), Column("KV budget", "kv_budget"))
_COMPUTE = (
    *_METHOD,
    Column("decisions", "decisions"),
    Column("chunk steps computed", "chunk_steps_computed", "{:.3f}"),
    Column("executed", "executed", "{:.4g}"),
    Column("share", "executed_share", "{:.3f}"),
    Column("paper's accounting", "paper_accounting", "{:.4g}"),
    Column("share", "paper_accounting_share", "{:.3f}"),
    Column("published", "published", "{:.0f}"),
    Column("share", "published_share", "{:.3f}"),
    Column("KV cache GiB", "kv_cache_gib", "{:.3g}"),
)


def tables(model: str, rows: pd.DataFrame) -> tuple[Table, Table]:
    """A model's compute beside the published one, and what it is made up of."""
    kinds = [kind for kind in KINDS if rows[kind].any()]
    split = (Column(name.replace("_", "-"), name, "{:.4g}") for name in (*_PARTS.values(), *kinds))
    meanings = "; ".join(f"*{kind.replace('_', '-')}*: {KINDS[kind]}" for kind in kinds) + "."
    source = f"{_COUNTED} {_setting(model)}; {made_by()}."
    return (
        Table("Compute at the paper's setting.", source, _COMPUTE, rows, _NOTES),
        Table(
            "What it is made up of.",
            "By operation, and by what it is for.",
            (*_METHOD, *split),
            rows,
            (meanings,),
            None,
        ),
    )


def _setting(model: str) -> str:
    config = compose_config([f"model={model}", "setting=paper"])
    network = ", ".join(f"{key} {value}" for key, value in config.model.on_meta.items() if key != "_target_")
    size = f"{config.setting.height}x{config.setting.width} pixels, {config.setting.num_frames} frames"
    steps = "" if config.setting.num_steps is None else f", {config.setting.num_steps} steps"
    return f"Model {model} ({network}), {size}{steps}"


@command("paper_flops")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    folders = [argument for argument in arguments if argument.startswith("output_dir=")]
    arguments = [argument for argument in arguments if argument not in folders]
    models = [argument.removeprefix("model=") for argument in arguments] or list(MODELS)
    unknown = [argument for argument in arguments if argument.removeprefix("model=") not in MODELS]
    if unknown:
        raise BadInput(
            f"{unknown[0]!r} is not understood; give model={' or model='.join(MODELS)}, or nothing for all "
            "(python run.py setting=paper device=meta counts any other setting)"
        )
    to = destination(inside_root(compose_config(folders).output_dir), publish)
    for model in models:
        to.save_table(f"{model}_{STEM}", *tables(model, pd.DataFrame(rows_of(model))))
    return 0

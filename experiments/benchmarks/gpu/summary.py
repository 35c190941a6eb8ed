"""What the measured cases of a GPU add up to, in Markdown: the targets first, then every figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.atomic import atomic_path
from experiments.benchmarks.gpu.micro_tables import micro_tables, table
from experiments.benchmarks.gpu.official_code import HOW_TO
from experiments.show.results import Table, markdown

GIB, PFLOP = 2**30, 1e15
SUMMARY = "summary.md"
VANILLA = {"skyreels": "c_skyreels_vanilla", "magi": "d_magi_vanilla"}
OFFICIAL = {"skyreels": "c_skyreels_official", "magi": "d_magi_official"}
Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Missing:
    """Of a case without a file: about how many seconds it takes, 0 where nobody asked; and why it has none."""

    seconds: float
    why: str


def write_summary(folder: Path, missing: Mapping[str, Missing] | None = None, command: str = "") -> str:
    """Write ``summary.md`` beside the cases' files and return it. ``command`` goes on with what is missing."""
    documents = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[a-g]_*.json"))
    }
    figures = {name: document["figures"] for name, document in documents.items()}
    told = [] if not missing else [_missing(missing, command)]
    text = "\n".join([_head(documents), *told, *(markdown(table) for table in _tables(figures) if len(table.data))])
    with atomic_path(folder / SUMMARY) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _missing(missing: Mapping[str, Missing], command: str) -> str:
    lines = [
        f"* {name}: {case.why}" + (f" (about {case.seconds:.0f} s)" if case.seconds else "")
        for name, case in missing.items()
    ]
    go_on = f"\nTo go on: `{command}`\n" if command else ""
    return "\n".join(["**Missing**:\n", *lines, go_on])


def _head(documents: dict[str, Any]) -> str:
    if not documents:
        return "**Nothing was measured.**\n"
    machines = [document["environment"] for document in documents.values()]
    told = sorted({_machine(machine) for machine in machines})
    options = sorted({" ".join(document["overrides"]) or "none" for document in documents.values()})
    return (
        f"**Measured** on {'; '.join(told)}. Options: {'; '.join(options)}. Weights are random; methods that decide by "
        "distances measure them and follow a schedule of the published compute.\n"
    )


def _machine(machine: dict[str, Any]) -> str:
    names = (machine.get("gpu", machine["cpu"]), f"driver {machine.get('driver')}", f"CUDA {machine.get('cuda')}")
    return ", ".join((*names, f"torch {machine['packages']['torch']}", f"revision {machine['revision']}"))


def _tables(figures: Figures) -> Iterator[Table]:
    yield table("Targets.", "Of one H100.", _targets(figures), ("target", "wanted", "measured", "verdict"))
    yield from micro_tables(figures.get("a_micro", {}))
    columns = ("model", "context", "ms", "TFLOP/s", "share of ceiling")
    yield table(
        "A chunk's forward (b)", "by the chunks that it attends to, itself included.", _forwards(figures), columns
    )
    columns = ("model", "kernel", "context", "ms", "TFLOP/s", "share of ceiling", "compile s")
    yield table("The same by kernel (b).", "`math` would not fit.", _kernels(figures), columns)
    columns = (
        "of a",
        "tokens",
        "ms in turn",
        "ms batched",
        "in turn / batched",
        "GiB in turn",
        "GiB batched",
        "verdict",
    )
    text = "SkyReels-V2's two by diffusers' forward; medians, and the whole spread in the verdict."
    yield table("Guidance branches in turn and batched (b).", text, _branches(figures), columns)
    columns = (
        "model",
        "method",
        "s",
        "first chunk s",
        "fps",
        "speed-up",
        "FLOP ratio",
        "efficiency",
        "s without VAE",
        "efficiency without VAE",
    )
    columns += ("PFLOPs", "TFLOP/s of rows", "policy", "compression", "peak GiB", "KV cache GiB")
    notes = (
        "One video each, after a short one that is not timed; speed-up against vanilla's. (f): KV budget 1 chunk.",
    )
    yield table("Videos (c, d, f).", "Whole, with text and VAE.", _videos(figures), columns, notes)
    columns = ("model", "rows", "ours, ms a row", "official, ms a row", "ratio of all", "difference", "replaced")
    text = "same weights and decisions; how far the latents end apart, and what torch's own operations replace."
    yield table("Beside the official FlowCache code (c, d):", text, _official(figures), columns)
    columns = ("method", "steps", "rows run", "PFLOPs", "s of all rows, estimated")
    yield table("MAGI-1 at 64 steps, estimated (d)", "from a sample of rows.", _estimates(figures), columns)
    columns = ("keys", "queries", "ms", "whole matrix ms", "MiB", "whole matrix MiB", "same kept")
    yield table("Compression (e)", "of one layer, against the whole-matrix form.", _compression(figures), columns)
    columns = (
        "chunks",
        "s a chunk, 2nd quarter",
        "last quarter",
        "KV cache GiB",
        "peak GiB, 2nd quarter",
        "last quarter ",
    )
    yield table("A long video (g).", "MAGI-1, frames of 480x480, 4 steps a chunk.", _long(figures), columns)


def _targets(figures: Figures) -> list[tuple]:
    rows, ceiling = [], figures.get("a_micro", {}).get("matmul_tflops")
    for model in VANILLA:
        found = figures.get(f"b_{model}_forward")
        share = None if not (found and ceiling) else min(c["tflops_per_s"] for c in found["contexts"]) / ceiling
        rows.append(
            _target(f"{model}: a chunk's forward, share of the matmul ceiling, least", share, 0.6, at_least=True)
        )
    for model, vanilla in VANILLA.items():
        fast = figures.get(vanilla.replace("vanilla", "flowcache_fast"))
        found = fast and figures.get(vanilla)
        efficiency = _gain(fast, figures[vanilla], 0.0, 0.0)[2] if found else None
        rows.append(_target(f"{model}: efficiency of flowcache_fast", efficiency, 0.95, at_least=True))
    shares = [
        _share(f, "policy") + _share(f, "compression")
        for name, f in figures.items()
        if name[0] in "cdf" and f.get("method") == "flowcache_fast" and "latency_s" in f
    ]
    rows.append(
        _target("policy and compression, share of the time, most", max(shares, default=None), 0.02, at_least=False)
    )
    found = figures.get("c_skyreels_diffusers")
    gain = found and found["diffusers_row_s"]["median"] / found["ours_row_s"]["median"]
    rows.append(_target("vanilla against diffusers' pipeline, speed-up of a row", gain, 1.0, at_least=True))
    for model, case in OFFICIAL.items():
        gain = figures.get(case, {}).get("ratio")
        *row, verdict = _target(
            f"{model}: flowcache row against the official code's, speed-up", gain, 1.3, at_least=True
        )
        rows.append((*row, verdict if gain else f"{verdict}; {HOW_TO}"))
    return rows


def _target(name: str, value: float | None, wanted: float, at_least: bool) -> tuple:
    if value is None:
        return name, f"{'>=' if at_least else '<'} {wanted}", "-", "not measured"
    met = value >= wanted if at_least else value < wanted
    return name, f"{'>=' if at_least else '<'} {wanted}", f"{value:.3f}", "met" if met else "**missed**"


def _rate(figures: Figures, measured: dict[str, Any]) -> tuple[str, str, str]:
    """Milliseconds, TFLOP/s and share of the ceiling."""
    ceiling = figures.get("a_micro", {}).get("matmul_tflops")
    rate = measured["tflops_per_s"]
    return f"{1e3 * measured['seconds']['median']:.2f}", f"{rate:.3g}", f"{rate / ceiling:.1%}" if ceiling else "-"


def _forwards(figures: Figures) -> list[tuple]:
    return [
        (model, case["context"], *_rate(figures, case))
        for model in VANILLA
        for case in figures.get(f"b_{model}_forward", {"contexts": []})["contexts"]
    ]


def _kernels(figures: Figures) -> list[tuple]:
    rows = []
    for model in VANILLA:
        if f := figures.get(f"b_{model}_kernels"):
            for backend, case in f["backends"].items():
                rate = ("refused", "-", "-") if "refused" in case else _rate(figures, case)
                rows.append((model, backend, f["context"], *rate, "-"))
            rows.append((model, "compiled", f["context"], *_rate(figures, f["compiled"]), f"{f['compile_s']:.1f}"))
    return rows


def _branches(figures: Figures) -> list[tuple]:
    rows = []
    for case in figures.get("b_skyreels_branches", {"cases": []})["cases"]:
        in_turn, batched = case["in_turn_s"], case["batched_s"]
        peaks = (case[f"{way}_peak_memory_gib"] for way in ("in_turn", "batched"))
        rows.append(
            (
                case["part"],
                case["tokens"],
                *(f"{1e3 * seconds['median']:.2f}" for seconds in (in_turn, batched)),
                f"{case['ratio']:.3f}",
                *("-" if peak is None else f"{peak:.1f}" for peak in peaks),
                _faster(in_turn, batched),
            )
        )
    return rows


def _faster(in_turn: dict[str, float], batched: dict[str, float]) -> str:
    """By medians, where no run of the one took as long as any of the other."""
    if batched["high"] < in_turn["low"]:
        return f"batched faster by {in_turn['median'] / batched['median'] - 1:.1%}"
    if in_turn["high"] < batched["low"]:
        return f"not: in turn faster by {batched['median'] / in_turn['median'] - 1:.1%}"
    return "not: spreads overlap"


def _gain(method: dict[str, Any], vanilla: dict[str, Any], left_out: float, left_out_of_vanilla: float) -> tuple:
    """Speed-up, FLOP ratio and efficiency, some seconds left out of each."""
    gain = (vanilla["latency_s"] - left_out_of_vanilla) / (method["latency_s"] - left_out)
    ratio = vanilla["flops"] / method["flops"]
    return gain, ratio, gain / ratio


def _share(video: dict[str, Any], section: str) -> float:
    return video["sections_s"].get(section, 0.0) / video["latency_s"]


def _videos(figures: Figures) -> list[tuple]:
    rows = []
    for name, f in figures.items():
        if name[0] not in "cdf" or "latency_s" not in f:
            continue
        part, model, _ = name.split("_", 2)
        vae, vanilla = f["sections_s"].get("vae", 0.0), figures.get(VANILLA[model])
        gains, gain_of_rows = ("-",) * 3, "-"
        if vanilla:
            gains = tuple(f"{value:.2f}" for value in _gain(f, vanilla, 0.0, 0.0))
            gain_of_rows = f"{_gain(f, vanilla, vae, vanilla['sections_s'].get('vae', 0.0))[2]:.2f}"
        method = f["method"] + (", KV budget" if part == "f" else "")
        peak = f["peak_memory_gib"]
        rows.append(
            (
                model,
                method,
                f"{f['latency_s']:.1f}",
                f"{f['chunk_latency_s'][0]:.1f}",
                f"{f['num_frames'] / f['latency_s']:.3g}",
                *gains,
                f"{f['latency_s'] - vae:.1f}",
                gain_of_rows,
                f"{f['flops'] / PFLOP:.4g}",
                f"{f['flops'] / f['sections_s']['transformer'] / 1e12:.3g}",
                f"{_share(f, 'policy'):.2%}",
                f"{_share(f, 'compression'):.2%}",
                "-" if peak is None else f"{peak:.1f}",
                f"{f['kv_bytes_allocated'] / GIB:.3g}",
            )
        )
    return rows


def _official(figures: Figures) -> list[tuple]:
    rows = []
    for model, case in OFFICIAL.items():
        if f := figures.get(case):
            ours, theirs = (f"{f[key]['median']:.1f}" for key in ("ours_row_ms", "official_row_ms"))
            difference, replaced = f"{f['latents_relative_difference']:.1e}", ", ".join(f["stand_ins"]) or "nothing"
            rows.append((model, f["rows"], ours, theirs, f"{f['ratio']:.2f}", difference, replaced))
    return rows


def _estimates(figures: Figures) -> list[tuple]:
    return [
        (
            f["method"],
            f["num_steps"],
            f"{f['rows_run']} of {f['rows']}",
            f"{f['flops'] / PFLOP:.4g}",
            f"{f['rows_s_estimated']:.0f}",
        )
        for name, f in figures.items()
        if name.startswith("d_magi_64_")
    ]


def _compression(figures: Figures) -> list[tuple]:
    rows = []
    for case in figures.get("e_compression", {"cases": []})["cases"]:
        times = [f"{1e3 * statistics.median(own):.2f}" for own in case["seconds"]]
        peaks = [f"{peak / 2**20:.0f}" for peak in case["peaks"]]
        if case["same"] is None:
            times, peaks = [*times, "would not fit"], [*peaks, f"{case['needed'] / 2**20:.0f}"]
        same = "-" if case["same"] is None else f"{case['same']:.4%}"
        rows.append((case["keys"], case["queries"], *times, *peaks, same))
    return rows


def _long(figures: Figures) -> list[tuple]:
    if "g_magi_long" not in figures:
        return []
    f = figures["g_magi_long"]
    seconds, peaks = (_quarters(f[key]) for key in ("chunk_s", "peak_memory_gib"))
    return [(len(f["chunk_s"]), *seconds, f"{f['kv_bytes_allocated'] / GIB:.3g}", *peaks)]


def _quarters(values: list[float]) -> tuple[str, str]:
    """Medians of the second quarter and of the last, the first being the window's beginning."""
    quarter = len(values) // 4
    if not quarter:
        return "-", "-"
    return f"{statistics.median(values[quarter : 2 * quarter]):.3g}", f"{statistics.median(values[-quarter:]):.3g}"

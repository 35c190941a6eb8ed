"""What the device alone can do, as tables of the summary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments.show.results import Column, Table

GIB = 2**30


def table(title: str, text: str, rows: list[tuple], names: tuple[str, ...], notes: tuple[str, ...] = ()) -> Table:
    return Table(title, text, tuple(Column(name, name) for name in names), pd.DataFrame(rows, columns=names), notes)


def micro_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Of the case "a_micro"; parts that it lacks give tables without rows, one that was refused says so."""
    yield table("Ceilings (a).", "Medians.", _ceilings(found), ("ceiling", "measured"))
    columns = ("kernel", "chunks attended to", "ms", "TFLOP/s", "first call ms", "first call, strided, ms")
    text = "MAGI-1's: 3 chunks of folded queries on 8 heads of 128 channels; a first call may build a plan."
    yield table("Attention (a).", text, _attention(found), columns)
    columns = ("what", "ms", "rate")
    yield table("Products, passes and decoding (a).", "At the models' shapes.", _others(found), columns)


def _ceilings(found: dict[str, Any]) -> list[tuple]:
    if not found:
        return []
    size, copied = found["matmul_size"], found["copy_bytes"] / GIB
    return [
        (f"bfloat16 product of {size} x {size}", f"{found['matmul_tflops']:.0f} TFLOP/s"),
        (f"copy of {copied:.3g} GiB, read and written", f"{found['copy_gb_per_s']:.0f} GB/s"),
    ]


def _attention(found: dict[str, Any]) -> list[tuple]:
    cases = found.get("attention", [])
    if isinstance(cases, dict):
        return [("-", "-", cases["refused"], "-", "-", "-")]
    return [
        (case["kernel"], "-", "refused", "-", "-", "-")
        if "refused" in case
        else (
            case["kernel"],
            case["context"],
            _ms(case["seconds"]),
            f"{case['tflops_per_s']:.3g}",
            f"{1e3 * case['first_call_s']:.1f}",
            f"{1e3 * case['strided_call_s']:.1f}",
        )
        for case in cases
    ]


def _others(found: dict[str, Any]) -> list[tuple]:
    rows: list[tuple] = [
        (name, part["refused"], "-")
        for name in ("products", "passes", "masked", "vae_tile")
        if isinstance(part := found.get(name), dict) and "refused" in part
    ]
    refused = {row[0] for row in rows}
    if "products" in found and "products" not in refused:
        rows += [(f["product"], _ms(f["seconds"]), f"{f['tflops_per_s']:.3g} TFLOP/s") for f in found["products"]]
    if "passes" in found and "passes" not in refused:
        rows += [(f["pass"], _ms(f["seconds"]), f"{f['gb_per_s']:.0f} GB/s") for f in found["passes"]]
    if "masked" in found and "masked" not in refused:
        rows += [
            ("attention under a mask", _ms(found["masked"]["masked_s"]), "-"),
            ("the same by a shorter view", _ms(found["masked"]["view_s"]), "-"),
        ]
    if "vae_tile" in found and "vae_tile" not in refused:
        vae = found["vae_tile"]
        apart = f"{vae['relative_difference']:.1e} apart"
        rows += [
            ("a tile of MAGI-1's VAE, float32", _ms(vae["float32_s"]), "-"),
            ("in bfloat16", _ms(vae["bfloat16_s"]), apart),
        ]
    return rows


def _ms(spread: dict[str, float]) -> str:
    return f"{1e3 * spread['median']:.2f}"

"""Caches on a stock pipeline of diffusers: FLOPs as they execute, no state from video to video, rows of a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from eval.flops import ExecutedFlops
from experiments.job.cli import compose_config
from experiments.job.groups import CONF
from experiments.job.job import make_job
from experiments.studies import stock_caches
from experiments.studies.stock_videos import STOCK, Made, Row, Stock
from flowcache.method import Method
from flowcache.reuse.chunkwise import Chunkwise
from tests.experiments.made_results import check_says_all

STUDY = OmegaConf.to_container(OmegaConf.load(CONF / "studies" / "stock_caches.yaml"))
SMALL = ["setting.num_frames=37", "setting.num_steps=4", "setting.height=32", "setting.width=32", "threads=1"]
ROWS = [
    Row("FirstBlockCache", {"threshold": 0.3}),
    Row("MagCache", {"threshold": 0.5}),
    Row("TaylorSeerCache", {"cache_interval": 2}),
    Row("TaylorSeerCache", {"cache_interval": 2, "use_lite_mode": True}),
    Row("PyramidAttentionBroadcast", {"spatial_attention_block_skip_range": 2}),
    Row("vanilla", {}, Method()),
    Row("flowcache_fast", {}, Method(reuse=Chunkwise(threshold=0.5, warmup_steps=1))),
]
OTHER = "a blue square staying still on a dark background"


@cache
def stock() -> Stock:
    job = make_job(compose_config(["model=skyreels", "method=vanilla", *SMALL]))
    made = Stock(job, OTHER)
    made.magnitudes = {"rows": 9, "ratios": [1.0] * 9}
    return made


@cache
def plain() -> Made:
    return stock().video(Row(STOCK), stock().job.prompts[0])


@pytest.mark.parametrize("row", [*ROWS, Row(STOCK)], ids=lambda row: row.name)
def test_flops_are_those_that_the_dispatcher_sees_and_no_video_leaves_a_trace(row):
    """The same video again after another prompt's, within one enabling too, as diffusers promises."""
    prompt, executed, before = stock().job.prompts[0], ExecutedFlops(), plain()
    alone = stock().video(row, prompt)
    with stock()._applied(row):
        stock()._called(OTHER)
        with executed, in_sections(executed, stock().pipe.transformer):
            again = stock()._called(prompt)
    assert np.array_equal(again, alone.frames)
    assert alone.flops == executed.by_section()["transformer"].flops > 0
    assert (alone.flops < before.flops) == (row.name != STOCK)
    furthest = np.abs(alone.frames.astype(int) - before.frames).max()
    if row.name == "vanilla":  # equal to rounding
        assert furthest <= 1
    else:
        assert (furthest == 0) == (row.name == STOCK)


@contextmanager
def in_sections(executed: ExecutedFlops, module: torch.nn.Module) -> Iterator[None]:
    sections = []

    def enter(*_: object) -> None:
        sections.append(executed.clock("transformer"))
        sections[-1].__enter__()

    def leave(*_: object) -> None:
        sections.pop().__exit__(None, None, None)

    hooks = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    yield
    for hook in hooks:
        hook.remove()


def test_what_has_no_row_is_as_the_notes_say():
    pipe, video = stock().pipe, lambda: stock()._called(stock().job.prompts[0])
    expected = plain().frames
    asking = diffusers.PyramidAttentionBroadcastConfig(2, current_timestep_callback=lambda: pipe.current_timestep)
    batched = diffusers.FasterCacheConfig(current_timestep_callback=lambda: 500)
    for own, error in ((asking, RuntimeError), (batched, IndexError)):
        with pytest.raises(error), stock()._enabled(own):
            video()
        pipe.transformer._reset_stateful_cache()
    for name in ("SeaCacheConfig", "TextKVCacheConfig"):
        with stock()._enabled(getattr(diffusers.hooks, name)()):
            assert np.array_equal(video(), expected)


def test_the_file_lists_what_there_is():
    for name, listed in STUDY["diffusers"].items():
        for options in listed:
            stock_config = getattr(diffusers, f"{name}Config")(**options, **stock()._beside(Row(name, options)))
            assert all(getattr(stock_config, key) == value for key, value in options.items())
    rows = stock_caches.rows_of(STUDY, ["model=skyreels", *SMALL])
    assert rows[0] == Row(STOCK)
    assert len({(row.name, str(row.options)) for row in rows}) == len(rows)
    assert [row.method.reuse.share for row in rows if row.name == "flowcast_fast"] == [0.75, 0.5, 0.35, 0.25]


def test_the_command_makes_its_table_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    study = {"diffusers": {"MagCache": [{"threshold": 0.5}]}, "ours": {"vanilla": [{}]}}
    monkeypatch.setattr(stock_caches.OmegaConf, "to_container", lambda loaded, _all=OmegaConf.to_container, **k: (
        study if "diffusers" in loaded else _all(loaded, **k)
    ))  # fmt: skip
    given = [*SMALL, "setting.height=64", "setting.width=64", "num_prompts=1", f"output_dir={tmp_path}"]
    given = [each for each in given if each not in SMALL[2:4]]
    made, video = [], Stock.video
    monkeypatch.setattr(Stock, "video", lambda *of: made.append(of[1].name) or video(*of))
    assert stock_caches.main(given) == 0
    assert sorted(made) == sorted([STOCK, STOCK, "MagCache", "vanilla"]), (
        "one of them counts rows for MagCache's ratios"
    )
    data = pd.read_csv(tmp_path / "tables" / "skyreels_embedded_stock_caches.csv").set_index("name")
    assert data.loc[STOCK, "share"] == 1
    assert data.loc["vanilla", "share_of_vanilla"] == 1
    assert data["share"].drop(STOCK).between(0.2, 0.95).all()
    assert data.loc["MagCache", "psnr"] < 60
    for kept in sorted((tmp_path / "stock_caches").iterdir()):
        if "vanilla" in kept.read_text(encoding="utf-8"):
            kept.unlink()
    made.clear()
    assert stock_caches.main(given) == 0
    assert made == [STOCK, "vanilla"], "the rest was there"
    check_says_all(tmp_path / "tables" / "skyreels_embedded_stock_caches.md")


def test_without_diffusers_the_message_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "experiments.studies.stock_videos")
    monkeypatch.delitem(sys.modules, "flowcache.integrations.diffusers")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "diffusers.hooks", None)
    assert stock_caches.main([*SMALL, f"output_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("stock_caches: the stock pipeline is diffusers'")
    assert len(said.splitlines()) == 1


def test_shares_are_of_stock_and_of_vanilla_and_identical_videos_have_no_psnr():
    common = {
        "options": "-",
        "stock_flops": 100,
        "stock_seconds": 2.0,
        "caption_right": True,
        "ssim": 1.0,
        "lpips": 0.0,
    }
    videos = [("vanilla", "a", 50, 1.0, math.inf), ("vanilla", "b", 50, 1.0, math.inf)]
    videos += [("mine", "a", 20, 0.5, 30.0), ("mine", "b", 30, 0.5, math.inf)]
    names = ("name", "prompt", "flops", "seconds", "psnr")
    frame = pd.DataFrame([common | dict(zip(names, video, strict=True)) for video in videos])
    vanilla, mine = stock_caches.summary(frame).to_dict("records")
    assert (vanilla["share"], vanilla["share_of_vanilla"], vanilla["speedup"]) == (0.5, 1.0, 2.0)
    assert vanilla["psnr_reason"] == stock_caches.IDENTICAL
    assert (mine["share"], mine["share_of_vanilla"], mine["speedup"]) == (0.25, 0.5, 4.0)
    assert (mine["psnr"], mine["psnr_n"]) == (30.0, 1)

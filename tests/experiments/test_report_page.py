"""The HTML report in Chromium, at a phone's width and at a screen's: what is seen, and how it behaves."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.video_io import write_lossless, write_mp4
from experiments.job.job import Job
from experiments.records import RecordStore
from experiments.records.collect import collect
from experiments.show import report
from experiments.show.methods import known_methods
from experiments.show.style import colour_and_marker
from experiments.show.tables import main_table
from tests.experiments.made_records import job_of, made, trace

METHODS = ("vanilla", "flowcache_fast")
NUM_FRAMES = 48


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """With records of two prompts by vanilla and by a method that reuses, of noise that no model made."""
    output_dir = tmp_path_factory.mktemp("outputs")
    rng = np.random.default_rng(0)
    for method, share, metrics in zip(METHODS, (1.0, 0.7), ({}, {"psnr": 40.0, "ssim": 0.9}), strict=True):
        job = job_of(output_dir, "prompts=[a,b]", f"setting.num_frames={NUM_FRAMES}", f"method={method}")
        store = RecordStore(job.output_dir)
        for prompt in job.prompts:
            record = made(job, prompt, share, metrics=metrics)
            frames = rng.integers(0, 256, (NUM_FRAMES, 64, 64, 3), np.uint8)
            write_lossless(store.video_path(record.key), frames, job.fps)
            write_mp4(store.preview_path(record.key), frames, job.fps)
            trace(reused=() if method == "vanilla" else ((0, 2), (1, 3))).to_parquet(store.trace_path(record.key))
            store.save(record)
    return job


@pytest.fixture(scope="module")
def folder(job: Job) -> Path:
    return report.build(job, job.output_dir / "page").parent


def opened(browser, folder: Path):
    """A report in headless Chromium, off the disk; every request is written down."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(180_000)
    page.requested, page.problems = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto((folder / "index.html").as_uri())
    return page


@pytest.fixture(scope="module")
def page(browser, folder):  # in this order: without a browser nothing is generated for it
    return opened(browser, folder)


@pytest.fixture(scope="module")
def page_of_all(browser, tmp_path_factory):
    """Of records of every method, one of them of an identical video, that no model was run for."""
    output_dir = tmp_path_factory.mktemp("all")
    made(job_of(output_dir, "method=vanilla"), "a")
    for place, name in enumerate(name for name in known_methods() if name != "vanilla"):
        metrics = {"psnr": "inf" if place == 0 else 40.0 - place, "ssim": 1 - 0.01 * place}
        made(job_of(output_dir, f"method={name}"), "a", 0.9 - 0.1 * place, metrics=metrics)
    report.build(job_of(output_dir), output_dir / "page")
    return opened(browser, output_dir / "page")


def test_an_identical_video_says_so_beside_its_other_facts_in_chromium(page_of_all):
    facts = page_of_all.eval_on_selector_all(
        "#takes figure", "all => all.map(f => [...f.querySelectorAll('p span')].map(s => s.textContent))"
    )
    assert facts[0] == ["the reference", "100 % of the compute"]
    assert ["90 % of the compute", "identical to vanilla", "SSIM 1.0000"] in facts
    assert ["80 % of the compute", "PSNR 39.00 dB", "SSIM 0.9900"] in facts


def test_every_method_has_a_mark_of_its_own_in_chromium(page_of_all):
    marks = page_of_all.eval_on_selector_all(
        "#measured span.method path", "all => all.map(p => ['d', 'fill', 'stroke'].map(a => p.getAttribute(a)).join())"
    )
    assert len(set(marks)) == len(marks) == len(known_methods())
    assert page_of_all.problems == []


def test_the_page_is_not_blank_in_chromium(page):
    page.locator("#plot").scroll_into_view_if_needed()
    shown = Image.open(BytesIO(page.locator("#pareto svg").screenshot())).convert("RGB")
    colours = Counter({colour: n for n, colour in shown.getcolors(shown.width * shown.height)})
    assert len(colours) > 20  # edges are smoothed
    assert colours.most_common(1)[0][1] < 0.98 * shown.width * shown.height
    blue = tuple(int(colour_and_marker("flowcache_fast")[0][i : i + 2], 16) for i in (1, 3, 5))
    assert colours[blue] > 50  # FlowCache's mark, in the figures' colour


def test_ticks_are_labelled_by_what_they_are_in_chromium(page):
    for low, high in (
        (18.7, 32.6),
        (0.55, 0.76),
        (0, 176),
        (0.9, 1.0),
        (0.01, 0.024),
        (3, 45),
        (100, 1000),
        (0.1, 9.9),
    ):
        for count in (3, 4, 5, 6, 7):
            ticks = page.evaluate(f"ticks({low}, {high}, {count})")
            assert [float(tick["text"]) for tick in ticks] == pytest.approx([tick["at"] for tick in ticks], abs=1e-9)
            assert ticks[0]["at"] <= low + 1e-9
            assert ticks[-1]["at"] >= high - 1e-9


@pytest.fixture(params=[390, 1440])
def narrow_or_wide(request, page_of_all):
    """The page of all methods at a phone's width and at a screen's."""
    page_of_all.set_viewport_size({"width": request.param, "height": 844})
    page_of_all.evaluate("scrollTo(0, 0)")
    wait_for_drawings(page_of_all, request.param)
    return page_of_all


def wait_for_drawings(page, width: int) -> None:
    """Until the page has its new width, the plot is as wide as its box less its padding, and tables say what they hide.

    What follows a new size is drawn a frame after it is seen, and it is seen at the end of a frame: three are enough.
    """
    page.wait_for_function(
        f"() => {{ if (innerWidth !== {width}) return false; const box = document.querySelector('#pareto');"
        "return Math.abs(box.firstElementChild.clientWidth + 16 - box.clientWidth) < 2; }"
    )
    page.evaluate("async () => { for (let n = 0; n < 3; n++) await new Promise(requestAnimationFrame); }")


def test_results_come_first_at_any_width_in_chromium(narrow_or_wide):
    page = narrow_or_wide
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    top = page.locator("#measured").bounding_box()["y"]
    assert top < 300  # pixels, of a screen of 844
    edge = page.locator("#measured-title").evaluate("title => title.closest('.table').getBoundingClientRect().right")
    for heading in ("compute left", "PSNR dB"):
        box = page.locator("#measured thead th", has_text=heading).bounding_box()
        assert box["x"] + box["width"] <= edge + 6, heading


def test_a_table_that_scrolls_says_so_until_its_end_in_chromium(narrow_or_wide):
    page = narrow_or_wide
    for kind in ("measured", "reported"):
        table = page.locator(f"#{kind}")
        scrolls, columns = table.evaluate(
            "t => [t.parentElement.scrollWidth > t.parentElement.clientWidth + 1, t.rows[0].cells.length]"
        )
        more = page.locator(f".table:has(#{kind}) .more")
        more.wait_for(state="visible" if scrolls else "hidden")
        if not scrolls:
            continue
        assert 0 < int(more.text_content().split()[0]) < columns
        method = table.locator("tbody th").first
        before = method.bounding_box()["x"]
        more.click()
        page.wait_for_function("t => t.parentElement.scrollLeft > 40", arg=table.element_handle())
        assert method.bounding_box()["x"] == pytest.approx(before, abs=1)  # methods stay in sight
        table.evaluate("t => { t.parentElement.scrollLeft = 1e5; }")
        more.wait_for(state="hidden")
        table.evaluate("t => { t.parentElement.scrollLeft = 0; }")
        more.wait_for(state="visible")


def inside(page, outer: str, inner: str) -> None:
    """Every mark lies within its box, and is there to be seen."""
    box = page.locator(outer).bounding_box()
    found = page.locator(inner).all()
    assert found
    for mark in found:
        own = mark.bounding_box()
        assert box["x"] <= own["x"]
        assert own["x"] + own["width"] <= box["x"] + box["width"] <= page.viewport_size["width"]
        assert box["y"] <= own["y"]
        assert own["y"] + own["height"] <= box["y"] + box["height"]


def test_all_points_and_all_steps_are_inside_their_boxes_in_chromium(narrow_or_wide):
    inside(narrow_or_wide, "#pareto", "#pareto .point")
    assert (
        narrow_or_wide.locator("#pareto text").first.evaluate("text => parseFloat(getComputedStyle(text).fontSize)")
        == 12
    )


@pytest.mark.parametrize("width", [390, 1440])
def test_the_only_point_and_the_map_are_inside_their_boxes_in_chromium(browser, folder, width):
    page = opened(browser, folder)
    page.set_viewport_size({"width": width, "height": 844})
    wait_for_drawings(page, width)
    assert page.locator("#pareto .point").count() == 1
    inside(page, "#pareto", "#pareto .point")
    inside(page, "#reuse figure:last-child", "#reuse figure:last-child rect:not(.back)")
    inside(page, "#reuse figure:last-child", "#reuse figure:last-child text")
    assert page.problems == []


def test_headings_sort_in_chromium(page, job):
    measured = main_table(collect(job), job)

    def methods() -> list[str]:
        return page.eval_on_selector_all("#measured tbody th", "cells => cells.map(cell => cell.dataset.value)")

    rising = list(measured.sort_values("compute_left").index)
    heading = page.locator("#measured thead th", has_text="compute left")
    for order, direction in ((rising, "ascending"), (rising[::-1], "descending")):
        heading.locator("button").click()
        assert methods() == order
        assert heading.get_attribute("aria-sort") == direction
    page.locator("#measured thead button", has_text="SSIM").click()
    assert methods()[-1] == "vanilla"  # which has none, and stays last either way
    page.locator("#measured thead button", has_text="SSIM").click()
    assert methods()[-1] == "vanilla"
    assert heading.get_attribute("aria-sort") is None


def test_all_videos_follow_the_slider_in_chromium(page, job):
    if not page.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64000a\"')"):
        pytest.skip("this Chromium plays no H.264; install a build that does (Debian: apt-get install chromium)")
    settled = "[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && !v.seeking && v.paused)"

    def times() -> list[float]:
        page.wait_for_function(settled)
        return page.eval_on_selector_all("video", "videos => videos.map(v => v.currentTime)")

    for frame in (31, 5):
        page.locator("#frame").fill(str(frame))
        assert times() == pytest.approx([(frame + 0.5) / job.fps] * len(METHODS), abs=1e-3)
    assert page.evaluate("document.getElementById('canvas').width") == 14 * 64  # drawn on, enlarged in whole steps
    page.locator("#canvas").click(position={"x": 4, "y": 4})
    assert float(page.locator("#wipe").input_value()) < 5
    page.locator("#play").click()
    page.wait_for_function("document.getElementById('frame').value > 8")
    page.locator("#play").click()
    shown = int(page.locator("#frame").input_value())
    assert times() == pytest.approx([(shown + 0.5) / job.fps] * len(METHODS), abs=1e-3)
    page.locator("#clip").select_option("1")
    assert times() == pytest.approx([(shown + 0.5) / job.fps] * len(METHODS), abs=1e-3)


def test_nothing_is_fetched_and_nothing_fails_in_chromium(page):
    assert page.requested
    assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []
    assert page.problems == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

"""The leaderboard in Chromium, at a phone's width and at a screen's: how it sorts and filters, and that all is seen."""

from __future__ import annotations

import pytest

from experiments.job.paths import ROOT
from experiments.show import leaderboard
from experiments.show.leaderboard import FAMILIES
from tests.experiments.test_leaderboard import make_videos

PAGE = ROOT / "results" / "leaderboard" / "index.html"


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(60_000)
    page.requested, page.problems = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(PAGE.as_uri())
    yield page
    assert page.problems == []
    assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []
    page.close()


def choose(page, family: str) -> None:
    page.locator(f"input[name=family][value='{family}']").check(force=True)


def rows(page, column: int) -> list[list[str]]:
    """Of the table of all settings, what is seen in a column, body by body."""
    seen = "[...body.rows].filter(row => !row.hidden).map(row => row.cells[column].dataset.value)"
    bodies = "[...document.querySelectorAll('#settings tbody.rows:not([hidden])')]"
    return page.evaluate(f"column => {bodies}.map(body => {seen})", column)


def test_a_family_governs_curves_and_rows_in_chromium(page):
    for family in FAMILIES:
        choose(page, family)
        assert page.locator("article:visible").count() == 1
        shown = page.locator(f"#{family} .plot .point")
        assert shown.count() > 5
        bodies = page.locator("#settings tbody.rows:visible")
        assert {bodies.nth(i).get_attribute("data-family") for i in range(bodies.count())} == {family}
    choose(page, "")
    assert page.locator("article:visible").count() == len(FAMILIES)


def test_filters_leave_what_they_say_in_chromium(page):
    names = page.locator("#settings thead button").all_text_contents()
    kind, calibrated = names.index("kind"), names.index("needs calibrating")
    page.select_option("#kind", "forecast")
    page.select_option("#calibrated", "yes")
    assert {value for body in rows(page, kind) for value in body} == {"forecast"}
    assert {value for body in rows(page, calibrated) for value in body} == {"yes"}
    page.select_option("#calibrated", "")
    page.select_option("#kind", "")
    page.fill("#name", "magcache")
    assert {value for body in rows(page, 0) for value in body} == {"magcache"}
    assert page.locator("#count").text_content() == f"{sum(map(len, rows(page, 0)))} rows"
    page.fill("#name", "")
    page.select_option("#rows", "reported")
    assert page.locator("#settings tbody.rows:visible tr:visible:not(:has(.tag.reported))").count() == 0


def test_headings_sort_by_key_and_reported_rows_stay_apart_in_chromium(page):
    names = page.locator("#settings thead button").all_text_contents()
    psnr = names.index("PSNR dB")
    page.select_option("#rows", "")
    before = [sorted(body) for body in rows(page, psnr)]
    page.locator("#settings thead button").nth(psnr).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.locator("#settings thead th").nth(psnr).get_attribute("aria-sort") == "descending"
    after = rows(page, psnr)
    assert [sorted(body) for body in after] == before  # no row left its body
    for body in after:
        known = [float(value) for value in body if value]
        assert known == sorted(known, reverse=True)
        assert body[len(known) :] == [""] * (len(body) - len(known))


def test_a_curve_tells_its_figures_to_the_keyboard_in_chromium(page):
    page.locator("#magi .line").first.focus()
    page.keyboard.press("ArrowRight")
    told = page.locator("#tip").text_content()
    assert "95 % interval" in told
    assert "compute left: " in told
    page.locator("#magi .legend button").nth(1).press("Enter")
    dim = page.eval_on_selector_all("#magi .line", "all => all.filter(each => !each.classList.contains('dim')).length")
    assert dim == 1


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_page_in_chromium(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    for family in ("", *FAMILIES):
        choose(page, family)
        page.wait_for_function(
            "() => [...document.querySelectorAll('.plot')].filter(box => box.clientWidth)"
            ".every(box => Math.abs(box.firstElementChild.clientWidth + 16 - box.clientWidth) < 2)"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_videos_follow_the_slider_and_show_their_difference_in_chromium(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboard, "FAMILIES", {"magi": FAMILIES["magi"]})
    make_videos(tmp_path)
    assert leaderboard.main([f"output_dir={tmp_path}", "videos=true"]) == 0
    page = browser.new_page()
    page.goto((tmp_path / "leaderboard" / "index.html").as_uri())
    if not page.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64000a\"')"):
        pytest.skip("this Chromium plays no H.264; install a build that does (Debian: apt-get install chromium)")
    page.locator(".frame-number").fill("3")
    page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && !v.seeking)")
    times = page.eval_on_selector_all("video", "videos => videos.map(v => v.currentTime)")
    assert times == pytest.approx([3.5 / 24] * 2, abs=1e-3)
    page.locator(".difference").check()
    assert page.locator(".clips canvas:visible").count() == 1
    assert page.locator(".clips canvas:visible").evaluate("canvas => canvas.width") == 64  # drawn on
    page.close()


def test_without_scripts_all_rows_are_there_in_chromium(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(PAGE.as_uri())
    assert page.locator("article:visible").count() == len(FAMILIES)
    assert page.locator("#settings tbody.rows tr:visible").count() > 400
    assert page.locator("noscript img").count() == page.locator("noscript img:visible").count() > 2
    assert page.locator("#filters:visible, #family:visible").count() == 0
    context.close()

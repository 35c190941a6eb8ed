"""What all tests share: one thread, unless FLOWCACHE_TEST_THREADS says more, no GPU tests without a GPU, a browser."""

import gc
import importlib.util
import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Of tiny models one thread is the fastest. Tests that need one to pass are wrong: sums are then added in another order.
torch.set_num_threads(int(os.environ.get("FLOWCACHE_TEST_THREADS", "1")))
# The same examples every time, so that a red test is red for everyone; deadlines would only measure the machine's load.
# FLOWCACHE_TEST_EXAMPLES: of a test that has been through all of them once already.
examples = int(os.environ.get("FLOWCACHE_TEST_EXAMPLES", "60"))
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=examples)
settings.load_profile("suite")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    """Playwright's handle of a Chromium that is installed, headless."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium is installed; install one (Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright, which drives Chromium, is not installed; pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"], timeout=180_000)
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What the imports leave is no garbage: to look through it again and again took a tenth of all tests' time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)  # what tests import, and make anew each time, is much
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

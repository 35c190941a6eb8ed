"""Marks of tests that need what a command fetches first: without it they are skipped, but in CI (CI=true) they fail."""

import os

import pytest

from eval.vbench import environment
from eval.weights.lpips import FETCH_COMMAND, weights_path


def needs(is_here: bool, what: str, command: str) -> pytest.MarkDecorator:
    """Skip without it, naming the command; CI runs that command, so there the test runs whatever is missing."""
    skip = not is_here and os.environ.get("CI") != "true"
    return pytest.mark.skipif(skip, reason=f"{what} not here: {command}")


needs_vgg = needs(weights_path("vgg").is_file(), "vgg weights are", FETCH_COMMAND)
needs_vbench = needs(environment.is_installed(), "VBench's environment is", environment.INSTALL_COMMAND)

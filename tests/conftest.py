"""What all tests share: one thread, so that sums are added in one order, and no GPU tests without a GPU."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same examples every time, so that a red test is red for everyone; deadlines would only measure the machine's load.
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

"""The process that workers are forked from, and what it imports once for all of them. Imports nothing slow itself."""

from __future__ import annotations

import signal
from multiprocessing import forkserver, resource_tracker

_SHARED_IMPORTS = (
    "experiments.run.runner",
    # What is imported late: by metrics, by writing traces, by loading the models' text encoders.
    "eval.caption_score",
    "pandas",
    "skimage.metrics.simple_metrics",
    "torchmetrics.image",
    "transformers.models.t5.modeling_t5",
    "transformers.models.umt5.modeling_umt5",
)


def start_server(loader: str) -> None:
    """Begin those imports and those of a model's ``loader`` (a class's method), beside whatever this process does until
    it needs workers. Again does nothing.

    Neither the server nor its workers take Ctrl-C, which a terminal sends to all: whoever started them ends them.
    """
    package = loader.rsplit(".", 2)[0]
    forkserver.set_forkserver_preload([*_SHARED_IMPORTS, package])
    resource_tracker.ensure_running()  # which unblocks Ctrl-C as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # they inherit it; here it comes a moment later
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

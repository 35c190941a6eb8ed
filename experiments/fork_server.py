"""The process that workers are forked from, and what it imports once for all of them. Imports nothing slow itself."""

from __future__ import annotations

from multiprocessing import forkserver

_SHARED_IMPORTS = ("experiments.runner", "torchmetrics.image", "transformers.models.t5.modeling_t5")


def start_server() -> None:
    """Begin those imports, beside whatever this process does until it needs workers. Again does nothing."""
    forkserver.set_forkserver_preload(list(_SHARED_IMPORTS))
    forkserver.ensure_running()

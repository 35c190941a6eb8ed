"""The process that workers are forked from, and what it imports once for all of them. Imports nothing slow itself."""

from __future__ import annotations

from multiprocessing import forkserver

_SHARED_IMPORTS = (
    "experiments.run.runner",
    "torchmetrics.image",
    "transformers.models.t5.modeling_t5",  # what loading the models' text encoders imports late
    "transformers.models.umt5.modeling_umt5",
)


def start_server(loader: str) -> None:
    """Begin those imports and those of a model's ``loader`` (a class's method), beside whatever this process does until
    it needs workers. Again does nothing."""
    package = loader.rsplit(".", 2)[0]
    forkserver.set_forkserver_preload([*_SHARED_IMPORTS, package])
    forkserver.ensure_running()

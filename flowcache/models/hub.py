"""Checkpoints by their name on Hugging Face's hub, ``hf://owner/name[/path][@revision]``, downloaded once.

The prefix tells them from paths, so that a misspelt path is never looked for on the network.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from flowcache.models.checkpoint import CheckpointError

PREFIX = "hf://"
NAME = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<path>[\w./-]+?))?/?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
# Beside the folder of a transformer, or up to two above, lie what several share: see the families' ``locate``.
BESIDE = ("vae", "t5", "t5_pretrained", "text_encoder", "tokenizer", "special_tokens.npz", "special_tokens.safetensors")
FOLDERS_ABOVE = 2


def on_disk(checkpoint: str | Path) -> Path:
    """Where a checkpoint lies: a path as it is, and what a name on the hub stands for once it is downloaded.

    Of a name with a path that path alone is taken, with the VAE, text encoder and tokens that lie around it; without
    one the whole repository. Files are kept in the hub's own cache (``HF_HOME``), and ``HF_HUB_OFFLINE=1`` takes them
    from there without a look at the network. Raises CheckpointError for a name that cannot be read or downloaded.
    """
    if not str(checkpoint).startswith(PREFIX):
        return Path(checkpoint)
    found = NAME.fullmatch(str(checkpoint))
    if found is None:
        raise CheckpointError(
            f"{checkpoint} is no name of a checkpoint on the hub; write {PREFIX}owner/name, {PREFIX}owner/name/folder "
            "or either with @revision"
        )
    from huggingface_hub import snapshot_download  # imported late: paths do without
    from huggingface_hub.errors import HfHubHTTPError

    path = found["path"]
    try:
        snapshot = snapshot_download(found["repository"], revision=found["revision"], allow_patterns=_patterns(path))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"{checkpoint} could not be downloaded ({_first_line(error)}); check the name and the network, log in "
            "(`hf auth login`) where a licence must be accepted, or download it elsewhere and give its directory"
        ) from error
    place = Path(snapshot, path or "")
    if not place.exists():
        raise CheckpointError(f"{found['repository']} has no {path}; see its files on the hub and give one of them")
    return place


def _patterns(path: str | None) -> list[str] | None:
    """Of the files to download; None is all of them."""
    if path is None:
        return None
    own = PurePosixPath(path)
    above = [own, *list(own.parents)[: FOLDERS_ABOVE + 1]]
    beside = [str(folder / name) for folder in above for name in BESIDE]
    return [path, f"{path}/*", *beside, *(f"{each}/*" for each in beside)]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""An override of run.py as it has to be typed, so that its value arrives as it is."""

from __future__ import annotations

import re
import shlex


def typed(key: str, *texts: str, as_list: bool = False) -> str:
    """What to type for a key's text, or for its list of texts: quoted for Hydra inside, and for a shell around."""
    values = ",".join(map(quoted, texts))
    return shlex.quote(f"{key}=[{values}]" if as_list else f"{key}={values}")


def quoted(text: str) -> str:
    """For Hydra, in double quotes, where a backslash counts as one only before a quote."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ("\\" if found[2] else "") + found[2], text) + '"'

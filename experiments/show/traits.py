"""What a method of a table is, by its name: its kind, whether it needs calibrating, where docs/methods.md tells it.

Names are those of tables: a method of conf/method, or its family ("flowcache"); after a plus a part in place of its own
("flowcache + corrected", "vanilla_kv + snapkv"); after a comma what it lacks ("flowcast, plain rule").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from omegaconf import OmegaConf

from experiments.job.compose import baselines
from experiments.job.groups import CONF, config_files
from experiments.show.methods import family, known_methods

KINDS = ("baseline", "reuse", "forecast", "KV")
SECTIONS = {"method": "what-each-method-does", "kv": "which-keys-stay", "kv/store": "how-precisely"}
_KINDS_OF_PARTS = {"reuse": "reuse", "forecast": "forecast", "kv": "KV", "kv/store": "KV"}
_CALIBRATED = re.compile(r"\$\{\w+_of:")  # a file that a command makes on the model: experiments.job.paths.calibration


@dataclass(frozen=True)
class Traits:
    """Of a method.

    Attributes:
        kind: of ``KINDS``; a forecast is what takes more than the last output in a skipped step.
        calibrated: needs a file that is made on the model first.
        section: of docs/methods.md, as an anchor.
    """

    kind: str
    calibrated: bool
    section: str


def traits_of(name: str) -> Traits | None:
    """None of a name that nothing in conf/ has, such as a paper's own."""
    words = re.split(r" \+ ", name.partition(", ")[0])
    method = _method_named(words[0])
    found = [_traits_of_method(method)] if method else []
    for word in words if method is None else words[1:]:
        group = next((g for g in _KINDS_OF_PARTS if (CONF / g / f"{word}.yaml").is_file()), None)
        if group is None:
            return None
        found.append(
            Traits(_KINDS_OF_PARTS[group], _is_calibrated(group, word), SECTIONS.get(group, SECTIONS["method"]))
        )
    last = max(found, key=lambda each: KINDS.index(each.kind))
    lacks = ", " in name
    return Traits(last.kind, not lacks and any(each.calibrated for each in found), last.section)


def as_named_here(name: str) -> str:
    """A paper's name of a method as conf/ would have it: "QuaRot, 2 bits" -> "quarot"."""
    return name.partition(",")[0].strip().lower().replace(" ", "_")


def comment_of(method: str) -> str:
    """What a method's file says of it: its first comment, to the end of a sentence or its last line."""
    lines = (CONF / "method" / f"{method}.yaml").read_text(encoding="utf-8").splitlines()[1:]
    comment = []
    for line in lines:
        if not line.startswith("#") or line.startswith("# Parity with"):
            break
        comment.append(line.removeprefix("#").strip())
    return " ".join(comment)


def _method_named(name: str) -> str | None:
    known = known_methods()
    return name if name in known else next((each for each in known if family(each) == name), None)


@cache
def _traits_of_method(method: str) -> Traits:
    chosen = {
        key.removeprefix("override /"): value
        for entry in OmegaConf.load(CONF / "method" / f"{method}.yaml").defaults
        if not isinstance(entry, str)
        for key, value in entry.items()
    }
    calibrated = any(_is_calibrated(group, part) for group, part in chosen.items() if group in _KINDS_OF_PARTS)
    kind = "baseline" if method in baselines() else "reuse" if chosen["forecast"] == "hold" else "forecast"
    return Traits(kind, calibrated, SECTIONS["method"])


@cache
def _is_calibrated(group: str, part: str) -> bool:
    """By the part's file, or one that it is based on."""
    (path,) = (path for path in config_files(group) if path.stem == part)
    based_on = OmegaConf.load(path).get("defaults", [])
    others = [entry for entry in based_on if isinstance(entry, str) and entry != "_self_"]
    text = path.read_text(encoding="utf-8")
    return bool(_CALIBRATED.search(text)) or any(_is_calibrated(group, other) for other in others)

"""The groups of conf/ that can be chosen from, such as model=magi: those that conf/config.yaml lists with a name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from experiments.job.paths import ROOT

CONF = ROOT / "conf"


@dataclass(frozen=True)
class Group:
    """A group.

    Attributes:
        key: what chooses from it on the command line, ``key=name``; with a package where the list gives one.
        default: the name that counts if none is given; None where nothing does.
    """

    key: str
    default: str | None

    @property
    def names(self) -> list[str]:
        """What can be chosen."""
        return [path.stem for path in config_files(self.key.partition("@")[0])]


@cache
def groups() -> dict[str, Group]:
    """By key, in the order of the list. A group whose name follows from others (``${model}_paper``) is no choice."""
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    found = {}
    for entry in (entry for entry in defaults if not isinstance(entry, str)):
        for key in entry:
            name = key.removeprefix("optional ").removeprefix("override ").lstrip("/")
            if not OmegaConf.is_interpolation(entry, key) and not name.startswith("hydra/"):
                found[name] = Group(name, entry[key])
    return found


def config_files(group: str) -> list[Path]:
    """The files of a folder in conf/, in order of name."""
    return sorted((CONF / group).glob("*.yaml"))

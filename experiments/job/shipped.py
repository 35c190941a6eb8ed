"""``python -m experiments.job.shipped`` writes what the library ships of conf/: named methods, and calibrations."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.job.compose import named_method
from experiments.job.groups import CONF, config_files
from experiments.job.paths import ROOT
from flowcache.methods import CALIBRATED, MODELS, SETTINGS

FOLDER = ROOT / "flowcache" / "methods"


def texts() -> dict[Path, str]:
    """Of every file, by where it lies."""
    names = sorted(path.stem for path in config_files("method"))
    made = {
        FOLDER / folder / path.name: path.read_text(encoding="utf-8")
        for folder in CALIBRATED.values()
        for path in (CONF / folder).glob("*.json")
    }
    for model in MODELS:
        for setting in SETTINGS:
            methods = {name: named_method(name, model, setting)[0].described() for name in names}
            lines = (f"{json.dumps(name)}: {json.dumps(methods[name])}" for name in names)
            made[FOLDER / f"{model}_{setting}.json"] = "{\n" + ",\n".join(lines) + "\n}\n"
    return made


def main() -> None:
    for path in FOLDER.rglob("*.json"):
        path.unlink()
    for path, text in texts().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

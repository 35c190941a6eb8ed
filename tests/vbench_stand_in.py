"""Stands in for VBench's environment: a few lines in the place of its interpreter, and weights that are empty files."""

import json
import sys
from pathlib import Path

import pytest

from eval.vbench import environment
from eval.vbench.suite import dimensions

# The n-th video of a folder scores n tenths, hundredfold in imaging_quality as in the package; what has "damaged" in
# its name is passed over, "crash" ends the process.
INTERPRETER = """#!{python}
import json, pathlib, sys
request = json.loads(pathlib.Path(sys.argv[-1]).read_text())
videos = sorted(pathlib.Path(request["videos"]).iterdir())
if any("crash" in video.name for video in videos):
    sys.exit("CUDA out of memory")
scale = 100 if request["dimension"] == "imaging_quality" else 1
values = [
    {{"video_path": str(video), "video_results": (n + 1) / 10 * scale}}
    for n, video in enumerate(videos)
    if "damaged" not in video.name
]
mean = sum(v["video_results"] for v in values) / len(values) / scale if values else float("nan")
folder = pathlib.Path(request["results"])
folder.mkdir()
(folder / "scores_eval_results.json").write_text(json.dumps({{request["dimension"]: [mean, values]}}))
"""


def empty_caches(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every cache is an empty folder: no environment, no weights."""
    for variable in ("FLOWCACHE_CACHE", "VBENCH_CACHE_DIR", "TORCH_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(folder / variable.lower()))


def stand_in_environment(full_info: list[dict]) -> None:
    """An installed environment with these prompts, in the cache."""
    environment.python().parent.mkdir(parents=True)
    environment.python().write_text(INTERPRETER.format(python=sys.executable), encoding="utf-8")
    environment.python().chmod(0o755)
    environment.full_info_path().parent.mkdir(parents=True)
    environment.full_info_path().write_text(json.dumps(full_info), encoding="utf-8")
    (environment.folder() / "requirements.installed").write_text(
        environment.REQUIREMENTS.read_text(encoding="utf-8"), encoding="utf-8"
    )


def provide(*names: str) -> None:
    """Empty files where the weights of dimensions are looked for."""
    for dimension in dimensions(names):
        for need in dimension.needs:
            need.path.parent.mkdir(parents=True, exist_ok=True)
            need.path.touch()

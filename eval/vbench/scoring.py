"""Scores of videos, one VBench dimension after the other, each in a process of its own."""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from eval.errors import MetricUnavailable
from eval.vbench import environment
from eval.vbench.suite import NAMES, Dimension, dimensions, root_folder
from eval.video_io import count_frames, refuse_random_video

Mode = Literal["custom_input", "vbench_standard"]
VIDEOS_PER_PROMPT = 5  # in the official protocol


@dataclass(frozen=True)
class DimensionScore:
    """One dimension's result.

    Attributes:
        mean: the package's own, in its own units: of frames in some dimensions, of videos in others.
        per_video: score of every video by file name, in the units of `mean`.
        num_expected: videos that the protocol asks for; on any videos, those that were given.
    """

    mean: float
    per_video: dict[str, float]
    num_expected: int


@dataclass
class Scores:
    """Results by dimension, why the others have none, and by file name what is wrong with videos that none has."""

    results: dict[str, DimensionScore] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        return {name: result.mean for name, result in self.results.items()}

    @property
    def missing_scores(self) -> int:
        """Videos that the protocol asks for and a dimension was not scored on, over all dimensions with a result."""
        return sum(result.num_expected - len(result.per_video) for result in self.results.values())


def score(
    videos: str | os.PathLike[str] | Mapping[str, Path],
    names: Iterable[str] | None = None,
    *,
    mode: Mode = "custom_input",
    device: str = "auto",
    partial: bool = False,
    report: environment.Report = lambda text: None,
) -> Scores:
    """Score videos in the dimensions whose weights are here; the others are listed with what is missing.

    A video that cannot be read whole, or has one frame only, is left out and listed with the reason. One that a
    dimension gives no score is reported, and the dimension is scored anew without it.

    Args:
        videos: a folder of mp4 files, or files by the name to score them under. A name, `<prompt>.mp4` or
            `<prompt>-<index>.mp4`, tells the package the prompt (needed by human_action, temporal_style and
            overall_consistency). A dimension whose process fails is listed as not run, with what it said last.
        names: of dimensions; by default all that the mode allows.
        mode: the package's own. `custom_input` scores every video in every dimension, except the six dimensions that
            need the benchmark's prompts. `vbench_standard` is the benchmark: each dimension has prompts of its own and
            5 videos of each, named `<prompt>-0.mp4` to `<prompt>-4.mp4`.
        device: auto, cpu or cuda.
        partial: in the standard mode, score what is there where videos are missing or unreadable; refused otherwise.
        report: told of each dimension and of each video without a score.

    Raises:
        MetricUnavailable: the environment is not installed.
        ValueError: unknown dimension, mode or device, one that the mode does not allow, no videos or none that can be
            read, one of random weights, or missing ones without `partial`.
    """
    if mode not in ("custom_input", "vbench_standard"):
        raise ValueError(f"unknown VBench mode {mode!r}; choose custom_input or vbench_standard")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; choose auto, cpu or cuda")
    asked = dimensions(NAMES if names is None else names)
    allowed = [d for d in asked if mode == "vbench_standard" or d.takes_any_video]
    if names is not None and len(allowed) < len(asked):
        refused = ", ".join(d.name for d in asked if d not in allowed)
        raise ValueError(f"{refused}: scored on the benchmark's own prompts only; use mode vbench_standard")
    files = _files(videos)
    environment.require()
    shares = {d.name: _videos_of(d, files, mode, partial) for d in allowed}
    wanted = {name: files[name] for names, _ in shares.values() for name in names}
    scores = Scores(left_out=_unreadable(wanted))
    if scores.left_out and not partial and (mode == "vbench_standard" or len(scores.left_out) == len(wanted)):
        raise ValueError(
            f"{len(scores.left_out)} of {len(wanted)} videos cannot be scored, the first: "
            f"{next(iter(scores.left_out.values()))}; make them again"
            + (", or ask for a partial score" if mode == "vbench_standard" else "")
        )
    for problem in scores.left_out.values():
        report(f"left out: {problem}")
    readable = {name: path for name, path in files.items() if name not in scores.left_out}
    for dimension in asked:
        try:
            scores.results[dimension.name] = _score_one(
                dimension, shares.get(dimension.name), readable, mode, device, report
            )
            result = scores.results[dimension.name]
            report(f"{dimension.name}: {result.mean:.4f} ({_videos(len(result.per_video))})")
        except MetricUnavailable as unavailable:
            scores.not_run[dimension.name] = str(unavailable)
            report(f"{dimension.name}: not run: {unavailable}")
    return scores


def videos_of_the_protocol(dimension: str, full_info: list[dict[str, Any]]) -> list[str]:
    """File names that the benchmark asks for in one dimension, in its order."""
    prompts = dict.fromkeys(entry["prompt_en"] for entry in full_info if dimension in entry["dimension"])
    return [f"{prompt}-{index}.mp4" for prompt in prompts for index in range(VIDEOS_PER_PROMPT)]


def _files(videos: str | os.PathLike[str] | Mapping[str, Path]) -> dict[str, Path]:
    """Videos by name; ValueError unless there are any and each is an existing mp4, and not of random weights."""
    if isinstance(videos, Mapping):
        files = {name: Path(path) for name, path in videos.items()}
        if not files:
            raise ValueError("no videos to score")
    else:
        place = Path(videos)
        if not place.is_dir():
            raise ValueError(f"no folder at {place}; give a folder of mp4 files")
        files = {path.name: path for path in sorted(place.glob("*.mp4"))}
        if not files:
            raise ValueError(f"{place} holds no mp4 file")
    for name, path in files.items():
        if not name.endswith(".mp4") or "/" in name:
            raise ValueError(f"{name!r} is no name for a video; write <prompt>-<index>.mp4")
        if not path.is_file():
            raise ValueError(f"no video at {path}")
        refuse_random_video(path)
    return files


def _unreadable(files: dict[str, Path]) -> dict[str, str]:
    """What is wrong with those videos that cannot be read whole, by name."""
    problems = {name: _problem(path, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files.items()}
    return {name: problem for name, problem in problems.items() if problem}


@cache  # a benchmark is scored one dimension after the other
def _problem(path: Path, size: int, changed_ns: int) -> str:
    """What is wrong with a video; "" if nothing."""
    try:
        num_frames = count_frames(path)
    except ValueError as error:
        return str(error)
    return "" if num_frames > 1 else f"{path} holds {num_frames} frames, two or more wanted"


def _videos_of(dimension: Dimension, files: dict[str, Path], mode: Mode, partial: bool) -> tuple[list[str], int]:
    """Names of the videos that a dimension is scored on, and how many it should have."""
    if mode == "custom_input":
        return list(files), len(files)
    wanted = videos_of_the_protocol(dimension.name, environment.full_info())
    present = [name for name in wanted if name in files]
    if len(present) < len(wanted) and not partial:
        absent = [name for name in wanted if name not in files]
        raise ValueError(
            f"{dimension.name} needs {len(wanted)} videos and {len(absent)} are missing, the first {absent[0]!r}; make "
            "them, or ask for a partial score"
        )
    return present, len(wanted)


def _score_one(
    dimension: Dimension,
    share: tuple[list[str], int] | None,
    files: dict[str, Path],
    mode: Mode,
    device: str,
    report: environment.Report,
) -> DimensionScore:
    if share is None:
        raise MetricUnavailable("it is scored on the benchmark's own prompts only")
    names, num_expected = [name for name in share[0] if name in files], share[1]
    if not names:
        raise MetricUnavailable(f"none of its {num_expected} videos is there")
    missing = dimension.missing()
    if missing:
        raise MetricUnavailable("missing " + "; ".join(map(str, missing)))
    report(f"{dimension.name}: scoring {_videos(len(names))}")
    mean, per_video = _run(dimension.name, {name: files[name] for name in names}, mode, device)
    scored = [name for name in names if math.isfinite(per_video.get(name, math.nan))]
    if not scored:
        raise MetricUnavailable(f"{len(names)} of {len(names)} videos got no score, the first {names[0]!r}")
    if len(scored) < len(names):
        # The package's mean is of all its videos, in some dimensions of all their frames.
        unscored = ", ".join(name for name in names if name not in scored)
        report(f"{dimension.name}: left out, the package gives them no score: {unscored}")
        return _score_one(dimension, (scored, num_expected), files, mode, device, report)
    if not math.isfinite(mean):
        raise MetricUnavailable(f"the package gives {len(names)} videos the mean {mean}")
    return DimensionScore(mean, {name: per_video[name] for name in names}, num_expected)


def _place(folder: Path, name: str, file: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).symlink_to(file.resolve())


def _run(dimension: str, files: dict[str, Path], mode: Mode, device: str) -> tuple[float, dict[str, float]]:
    """Mean and per-video scores, on one scale, from a process of the package's own environment."""
    with tempfile.TemporaryDirectory(prefix="vbench_") as temporary:
        # The package reads all of a folder; this one holds the dimension's videos and nothing else.
        for name, file in files.items():
            _place(Path(temporary, "videos"), name, file)
        mean, per_video = _run_in(Path(temporary), dimension, mode, device)
    if dimension == "imaging_quality":
        per_video = {name: value / 100 for name, value in per_video.items()}  # only its mean is on the others' scale
    return mean, per_video


def _run_in(folder: Path, dimension: str, mode: Mode, device: str) -> tuple[float, dict[str, float]]:
    """Mean and per-video scores of a folder's videos as the package gives them."""
    request = {
        "dimension": dimension,
        "videos": str(folder / "videos"),
        "results": str(folder / "results"),
        "full_info": str(environment.full_info_path()),
        "mode": mode,
        "device": device,
    }
    asked = folder / "request.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    command = [str(environment.python()), "-I", str(environment.INSIDE), str(asked)]
    done = subprocess.run(
        command, env=_variables(), cwd=folder, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        said = environment.last_lines(done.stderr or done.stdout)
        raise MetricUnavailable(f"its process ended with {done.returncode}:\n{said}")
    written = json.loads((folder / "results" / "scores_eval_results.json").read_text(encoding="utf-8"))
    mean, videos = written[dimension][:2]
    return float(mean), {Path(video["video_path"]).name: float(video["video_results"]) for video in videos}


def _variables() -> dict[str, str]:
    """Of the process: its caches are where `suite` looks, and it downloads nothing."""
    hub = str(root_folder("huggingface"))
    return {
        **os.environ,
        "VBENCH_CACHE_DIR": str(root_folder("vbench")),
        "TORCH_HOME": str(root_folder("torch").parent),
        "HF_HUB_CACHE": hub,
        "HUGGINGFACE_HUB_CACHE": hub,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def _videos(number: int) -> str:
    return f"{number} video{'s' * (number != 1)}"

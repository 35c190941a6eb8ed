import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.errors import MetricUnavailable
from eval.vbench import environment, scoring
from eval.vbench.__main__ import main
from eval.vbench.scoring import score, videos_of_the_protocol
from eval.vbench.suite import NAMES, SUITE, dimensions
from eval.vbench.totals import normalised, totals
from eval.video_io import write_mp4
from tests.fetched import needs_vbench
from tests.vbench_stand_in import empty_caches, provide, stand_in_environment

# Lowest and highest where they are not 0 and 1, as VBench:scripts/constant.py gives them (NORMALIZE_DIC).
LIMITS = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
RAW = {name: 0.30 + 0.04 * place for place, name in enumerate(NAMES)}  # sixteen different scores
FULL_INFO = [
    {"prompt_en": "a cat - up close", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a dog", "dimension": ["imaging_quality", "aesthetic_quality"]},
    {"prompt_en": "a dog", "dimension": ["imaging_quality", "scene"]},
]


@pytest.fixture
def nothing_here(monkeypatch, tmp_path) -> Path:
    empty_caches(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def stand_in(nothing_here) -> Path:
    stand_in_environment(FULL_INFO)
    return nothing_here


BLACK = np.zeros((2, 16, 16, 3), np.uint8)


def touch(folder: Path, *names: str) -> Path:
    """A folder with files of these names; mp4 files are videos."""
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.endswith(".mp4"):
            write_mp4(folder / name, BLACK, 24)
        else:
            (folder / name).touch()
    return folder


def test_the_suite_is_vbenchs():
    assert len(NAMES) == len(set(NAMES)) == 16
    assert [d.group for d in SUITE] == ["quality"] * 7 + ["semantic"] * 9
    own_prompts = {"object_class", "multiple_objects", "color", "spatial_relationship", "scene", "appearance_style"}
    assert {d.name for d in SUITE if not d.takes_any_video} == own_prompts
    assert [d.name for d in SUITE if not d.needs] == ["temporal_flickering"]


def test_totals_follow_the_official_script():
    scaled = {}
    for name, value in RAW.items():
        low, high = LIMITS.get(name, (0.0, 1.0))
        scaled[name] = (value - low) / (high - low)
    halved = {**scaled, "dynamic_degree": 0.5 * scaled["dynamic_degree"]}  # its weight
    quality = sum(halved[name] for name in NAMES[:7]) / 6.5
    semantic = sum(halved[name] for name in NAMES[7:]) / 9
    combined = totals(RAW)
    found = (combined.quality, combined.semantic, combined.total)
    assert found == pytest.approx((quality, semantic, (4 * quality + semantic) / 5), abs=1e-12)
    assert (combined.missing, combined.name) == ((), "Total")


def test_limits_and_weights():
    lowest, highest = ({d.name: getattr(d, end) for d in SUITE} for end in ("lowest", "highest"))
    assert totals(lowest).total == 0
    assert totals(highest).total == pytest.approx(1)
    # One dimension at its highest, all others at their lowest: its share of the total.
    for name, share in {"dynamic_degree": 0.8 * 0.5 / 6.5, "imaging_quality": 0.8 / 6.5, "scene": 0.2 / 9}.items():
        assert totals(lowest | {name: highest[name]}).total == pytest.approx(share)
    smoothness = dimensions(["motion_smoothness"])[0]
    assert normalised(smoothness, 0.85175) == pytest.approx(0.5)
    assert normalised(smoothness, 1.0) > 1  # not clipped


def test_a_total_without_every_dimension_is_refused_or_named_partial():
    raw = dict(RAW)
    del raw["scene"], raw["dynamic_degree"]
    with pytest.raises(ValueError, match=r"needs all 16 dimensions and dynamic_degree, scene are missing"):
        totals(raw)
    combined = totals(raw, partial=True)
    assert combined.missing == ("dynamic_degree", "scene")
    assert combined.name == "Total (partial: 14 of 16 dimensions)"
    by_name = {d.name: normalised(d, raw[d.name]) for d in SUITE if d.name in raw}
    semantic = [by_name[d.name] for d in SUITE if d.group == "semantic" and d.name in raw]
    assert combined.semantic == pytest.approx(sum(semantic) / 8)  # not a raw 0 for what is missing
    with pytest.raises(ValueError, match="3 video scores are missing"):
        totals(RAW, missing_scores=3)
    assert totals(RAW, missing_scores=3, partial=True).name == "Total (partial: 3 video scores missing)"
    quality_only = totals({"temporal_flickering": 0.9}, partial=True)
    assert (quality_only.semantic, quality_only.total) == (None, None)
    assert quality_only.quality == pytest.approx((0.9 - 0.6293) / (1 - 0.6293))


def test_totals_of_no_scores():
    with pytest.raises(ValueError, match=r"unknown VBench dimension 'colour'; did you mean color\?"):
        totals({"colour": 1.0})
    with pytest.raises(ValueError, match="the score of scene is nan"):
        totals(RAW | {"scene": math.nan})


def test_missing_weights_are_named_until_they_are_there(nothing_here, capsys):
    for dimension in SUITE:
        assert len(dimension.missing()) == len(dimension.needs)
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert f"{nothing_here}/vbench_cache_dir/amt_model/amt-s.pth (from https://huggingface.co/lalala125" in text
    assert f"{nothing_here}/torch_home/hub/checkpoints/dino_vitbase16_pretrain.pth" in text
    assert f"{nothing_here}/hf_hub_cache/models--bert-base-uncased" in text
    assert "site-packages/detectron2" in text
    assert "environment: missing, run python -m eval.vbench install" in text
    provide("motion_smoothness")
    assert dimensions(["motion_smoothness"])[0].missing() == []
    main(["list"])
    text = capsys.readouterr().out
    assert "amt-s.pth" not in text
    assert "raft-things.pth" in text


def test_any_videos(stand_in):
    provide("imaging_quality")
    touch(stand_in / "clips", "b.mp4", "a.mp4", "notes.txt")
    told = []
    scores = score(stand_in / "clips", report=told.append)
    assert list(scores.results) == ["temporal_flickering", "imaging_quality"]
    for result in scores.results.values():  # both in the same units
        assert result.per_video == pytest.approx({"a.mp4": 0.1, "b.mp4": 0.2})
        assert (result.mean, result.num_expected) == (pytest.approx(0.15), 2)
    assert set(scores.not_run) == set(NAMES) - set(scores.results)
    assert "amt-s.pth (from https://" in scores.not_run["motion_smoothness"]
    assert scores.not_run["scene"] == "it is scored on the benchmark's own prompts only"
    assert "temporal_flickering: 0.1500 (2 videos)" in told


def test_the_protocols_videos(stand_in):
    assert videos_of_the_protocol("imaging_quality", FULL_INFO) == [f"a dog-{i}.mp4" for i in range(5)]
    provide("imaging_quality", "scene")
    file = touch(stand_in / "made", "x.mp4") / "x.mp4"
    cats, dogs = ({f"{prompt}-{i}.mp4": file for i in range(5)} for prompt in ("a cat - up close", "a dog"))
    names = ["temporal_flickering", "imaging_quality"]
    scores = score(cats | dogs, names, mode="vbench_standard")
    assert set(scores.results["temporal_flickering"].per_video) == set(cats)  # each on its own prompts
    assert set(scores.results["imaging_quality"].per_video) == set(dogs)
    assert scores.missing_scores == 0
    del dogs["a dog-3.mp4"]
    with pytest.raises(ValueError, match=r"imaging_quality needs 5 videos and 1 are missing, the first 'a dog-3.mp4'"):
        score(cats | dogs, names, mode="vbench_standard")
    scores = score(dogs, [*names, "scene"], mode="vbench_standard", partial=True)
    assert scores.missing_scores == 2
    assert scores.not_run == {"temporal_flickering": "none of its 5 videos is there"}


def spoil(folder: Path) -> dict[str, str]:
    """Puts files that are no whole videos of two frames into a folder; by name, what is to be said of each."""
    whole = (folder / "fine.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[:-1])
    (folder / "empty.mp4").touch()
    write_mp4(folder / "one.mp4", BLACK[:1], 24)
    (folder / "text.mp4").write_text("not a video", encoding="utf-8")
    return {
        "cut.mp4": "cut.mp4 is cut short by at least 1 bytes; copy or download it again",
        "empty.mp4": "empty.mp4 is not a readable video",
        "one.mp4": "one.mp4 holds 1 frames, two or more wanted",
        "text.mp4": "text.mp4 is not a readable video",
    }


def test_bad_files_are_named_and_the_others_scored(stand_in, capsys):
    folder = touch(stand_in / "clips", "fine.mp4", "other.mp4")
    wrong = spoil(folder)
    latin = (folder / "other.mp4").read_bytes().replace(b"VideoHandler", b"VideoHandl\xe9r")
    (folder / "other.mp4").write_bytes(latin)  # a tag in Latin-1 is no harm
    command = ["score", str(folder), "--dimensions", "temporal_flickering", "--output", str(stand_in / "scores.json")]
    assert main(command) == 1
    said = capsys.readouterr().out
    written = json.loads((stand_in / "scores.json").read_text(encoding="utf-8"))
    assert written["results"]["temporal_flickering"] == {
        "mean": pytest.approx(0.15),
        "per_video": {"fine.mp4": 0.1, "other.mp4": 0.2},
        "num_expected": 6,
    }
    assert list(written["left_out"]) == list(wrong)
    for name, problem in wrong.items():
        assert f"left out: {folder}/{problem}" in said
        assert problem in written["left_out"][name]


def test_nothing_but_bad_files_is_bad_input(stand_in, capsys):
    folder = touch(stand_in / "clips", "fine.mp4")
    spoil(folder)
    (folder / "fine.mp4").unlink()
    assert main(["score", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vbench: 4 of 4 videos cannot be scored, the first: {folder}/cut.mp4 is cut short by")
    assert error.count("\n") == 1


def test_the_benchmark_with_a_bad_file_is_partial_or_refused(stand_in):
    folder = touch(stand_in / "clips", *(f"a cat - up close-{i}.mp4" for i in range(5)))
    (folder / "a cat - up close-3.mp4").write_text("not a video", encoding="utf-8")
    names, mode = ["temporal_flickering"], "vbench_standard"
    with pytest.raises(ValueError, match=r"1 of 5 videos .* the first: .*close-3\.mp4 is not .*or ask for a partial"):
        score(folder, names, mode=mode)
    scores = score(folder, names, mode=mode, partial=True)
    assert list(scores.left_out) == ["a cat - up close-3.mp4"]
    assert list(scores.results["temporal_flickering"].per_video) == [f"a cat - up close-{i}.mp4" for i in (0, 1, 2, 4)]
    assert scores.missing_scores == 1
    alone = {"a cat - up close-3.mp4": folder / "a cat - up close-3.mp4"}
    scores = score(alone, names, mode=mode, partial=True)
    assert scores.not_run == {"temporal_flickering": "none of its 5 videos is there"}


def test_what_the_package_passes_over_or_dies_of_is_no_score(stand_in, capsys):
    names = ["temporal_flickering"]
    folder = touch(stand_in / "a", "damaged.mp4", "fine.mp4", "other.mp4")
    assert main(["score", str(folder), "--dimensions", *names]) == 1
    said = capsys.readouterr().out
    assert "temporal_flickering: left out, the package gives them no score: damaged.mp4\n" in said
    assert "temporal_flickering: 0.1500 (2 videos)" in said
    scores = score(touch(stand_in / "c", "damaged.mp4"), names)
    assert scores.not_run["temporal_flickering"] == "1 of 1 videos got no score, the first 'damaged.mp4'"
    scores = score(touch(stand_in / "b", "crash.mp4"), names)
    assert scores.not_run["temporal_flickering"] == "its process ended with 1:\nCUDA out of memory"
    assert main(["score", str(stand_in / "b"), "--dimensions", "temporal_flickering"]) == 1


def test_command_line_scores_and_totals(stand_in, capsys):
    clips = touch(stand_in / "clips", *(f"a cat - up close-{i}.mp4" for i in range(5)))
    command = ["score", str(clips), "--dimensions", "temporal_flickering", "--standard"]
    assert main(command) == 0
    assert "no total: a VBench total needs all 16 dimensions" in capsys.readouterr().out
    assert main([*command, "--partial", "--output", str(stand_in / "scores.json")]) == 0
    assert "Total (partial: 1 of 16 dimensions): n/a" in capsys.readouterr().out
    written = json.loads((stand_in / "scores.json").read_text(encoding="utf-8"))
    assert written["results"]["temporal_flickering"]["per_video"]["a cat - up close-4.mp4"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no folder at nowhere; give a folder of mp4 files"),
        (["{empty}"], "holds no mp4 file"),
        (["{clips}", "--dimensions", "temporal_flicker"], "did you mean temporal_flickering"),
        (["{clips}", "--dimensions", "scene,color"], "color, scene: scored on the benchmark's own prompts only"),
        (["{clips}", "--device", "tpu"], "choose auto, cpu or cuda"),
        (["{clips}", "--standard"], "needs 5 videos and 5 are missing"),
        (["{random}"], "random/b.mp4 was made with random weights, so that no metric says anything of it"),
    ],
)
def test_bad_input_is_one_message(stand_in, capsys, arguments, message):
    folders = {"clips": ["a.mp4"], "empty": [], "random": ["a.mp4"]}
    places = {name: touch(stand_in / name, *files) for name, files in folders.items()}
    write_mp4(places["random"] / "b.mp4", BLACK, 24, random_weights=True)
    assert main(["score", *(a.format(**places) for a in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("vbench: ")
    assert said.count("\n") == 1


def test_bad_names_of_videos(stand_in):
    with pytest.raises(ValueError, match="no videos to score"):
        score({})
    with pytest.raises(ValueError, match=r"'a.mkv' is no name for a video"):
        score({"a.mkv": touch(stand_in / "c", "a.mkv") / "a.mkv"})
    with pytest.raises(ValueError, match="no video at"):
        score({"a.mp4": stand_in / "missing.mp4"})
    with pytest.raises(ValueError, match="unknown VBench mode 'custom'"):
        score(stand_in, mode="custom")


def test_without_the_environment(nothing_here, capsys):
    clips = touch(nothing_here / "clips", "a.mp4")
    assert main(["score", str(clips)]) == 2
    assert "run `python -m eval.vbench install`" in capsys.readouterr().err
    with pytest.raises(MetricUnavailable, match="VBench has no environment"):
        environment.full_info()


@pytest.mark.parametrize("failing", range(4))
def test_an_environment_counts_once_every_step_was_done(nothing_here, monkeypatch, failing):
    steps, fail = [], True

    def run(command: list[str]) -> None:
        if fail and len(steps) == failing:
            raise MetricUnavailable("the connection broke")
        steps.append(command)
        environment.python().parent.mkdir(parents=True, exist_ok=True)
        environment.python().touch()

    monkeypatch.setattr(environment, "_run", run)
    with pytest.raises(MetricUnavailable, match="the connection broke"):
        environment.install()
    assert not environment.is_installed()
    steps, fail = [], False
    environment.install()
    assert environment.is_installed()
    assert steps[0][1:4] == ["-m", "venv", "--clear"]  # nothing of the broken one stays
    assert "torch==2.13.0" in steps[1]
    assert steps[2][-1] == str(environment.REQUIREMENTS)
    assert steps[3][-1] == str(environment.INSIDE)
    environment.install()
    assert len(steps) == 4


def test_other_requirements_make_another_environment(stand_in, monkeypatch, tmp_path):
    assert environment.is_installed()
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\nvbench==0.1.6\n", encoding="utf-8")
    monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path / "requirements.txt")
    assert not environment.is_installed()
    assert environment.package() == "vbench==0.1.6"


def test_an_install_that_fails_is_no_bad_input(nothing_here, monkeypatch, capsys):
    run = environment._run
    monkeypatch.setattr(environment, "_run", lambda command: run(["false"]))
    assert main(["install"]) == 1
    assert "vbench: VBench's environment was not made: false ended with 1" in capsys.readouterr().err


def test_a_failing_step_says_what_pip_said(nothing_here):
    with pytest.raises(MetricUnavailable, match=r"(?s)ended with 3; run `.* again once this is mended:\nno space left"):
        environment._run([sys.executable, "-c", "import sys; print('no space left', file=sys.stderr); sys.exit(3)"])


def test_a_python_that_the_package_runs_on(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    monkeypatch.setattr(environment.shutil, "which", lambda name: f"/elsewhere/{name}")
    assert environment._base_python() == "/elsewhere/python3.11"
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(MetricUnavailable, match=r"VBench needs Python 3\.11"):
        environment._base_python()


@pytest.mark.slow
@needs_vbench
def test_temporal_flickering_for_real(tmp_path):
    smooth = np.full((16, 64, 64, 3), 90, np.uint8)
    for frame, pixels in enumerate(smooth):
        pixels[20:40, 10 + frame : 30 + frame] = (220, 60, 60)
    noise = np.random.default_rng(0).integers(-60, 61, smooth.shape)
    noisy = np.clip(smooth.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    for name, frames in (("smooth", smooth), ("noisy", noisy)):
        write_mp4(tmp_path / f"{name}.mp4", frames, fps=8)
    result = score(tmp_path, ["temporal_flickering"], device="cpu").results["temporal_flickering"]
    assert result.mean == pytest.approx(np.mean(list(result.per_video.values())))
    assert result.per_video["noisy.mp4"] < result.per_video["smooth.mp4"] - 0.05
    # Its definition, on the frames before compression: 1 - mean absolute difference of neighbours / 255.
    expected = 1 - np.abs(np.diff(smooth.astype(float), axis=0)).mean() / 255
    assert result.per_video["smooth.mp4"] == pytest.approx(expected, abs=0.003)


@pytest.mark.slow
@needs_vbench
def test_the_packages_own_prompts():
    full_info = environment.full_info()
    assert len(full_info) == 946
    assert len({entry["prompt_en"] for entry in full_info}) == 944
    assert {name for entry in full_info for name in entry["dimension"]} == set(NAMES)
    assert len(videos_of_the_protocol("temporal_flickering", full_info)) == 75 * scoring.VIDEOS_PER_PROMPT

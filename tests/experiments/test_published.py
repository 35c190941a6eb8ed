"""No command writes into results/ unless ``publish=true`` asks for it; without, all goes below output_dir.

Of vbench_full: tests/experiments/test_vbench_full.py.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from eval.video_io import write_lossless
from experiments.benchmarks import bench
from experiments.benchmarks.gpu import command as gpu
from experiments.benchmarks.gpu.cases import Work
from experiments.committed.said import said_by
from experiments.job.errors import BadInput
from experiments.job.experiment import jobs_of
from experiments.records import RecordStore, code_version
from experiments.show import ablations, figures, long_video, report, results, tables
from experiments.show.results import TABLES, publishing
from experiments.show.style import STYLE
from experiments.studies import l1_rel, paper_flops
from tests.experiments.made_records import made, trace
from tests.experiments.made_results import check_says_all
from tests.experiments.test_figures import process

PROMPTS = "prompts=[a,b,c,d,e,f,g,h]"  # as many as the experiments take


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "outputs"


@pytest.fixture
def check(monkeypatch, tmp_path, output_dir, capsys):
    """That ``main(arguments)`` leaves a stand-in for results/ alone, says where it wrote instead, and writes the same
    files there once it is asked to; and that each says of which code, and unless it is ``counted`` of how many videos
    on which machine it is."""
    for key in ("figure.dpi", "savefig.dpi"):
        monkeypatch.setitem(STYLE, key, 40)
    published = tmp_path / "results"
    monkeypatch.setattr(results, "PUBLISHED", published)
    monkeypatch.setattr(gpu, "PUBLISHED", published)

    def written(folder) -> set[str]:
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {str(path) for path in found if path.parts[0] in ("tables", "figures", "gpu")}

    def check(main, arguments: list[str], expected: set[str], counted: bool = False) -> None:
        arguments = [*arguments, f"output_dir={output_dir}"]
        assert main(arguments) == 0
        assert not published.exists()
        assert written(output_dir) == expected
        said = capsys.readouterr().out
        assert all(str(output_dir / name.rpartition("/")[0]) in said for name in expected)
        assert main([*arguments, "publish=true"]) == 0
        assert written(published) == expected
        assert str(published) in capsys.readouterr().out
        for name in (name for name in expected if not name.startswith("gpu/")):
            said = said_by(published / name)
            assert said is None or said.version == code_version(), name
            if name.endswith((".md", ".png", ".svg")) and not counted:
                check_says_all(published / name)

    return check


def forms(kind: str, *stems: str) -> set[str]:
    endings = {"tables": ("md", "tex", "csv"), "figures": ("png", "svg")}[kind]
    return {f"{kind}/magi_embedded_{stem}.{ending}" for stem in stems for ending in endings}


def make_records(output_dir, experiment: str, num_jobs: int) -> None:
    """Of the baseline and the first other settings of an experiment, with their videos and traces."""
    jobs, _ = jobs_of(experiment, [PROMPTS, "num_prompts=8", f"output_dir={output_dir}"])
    for job in jobs[:num_jobs]:
        for prompt in job.prompts:
            metrics = {} if job.is_baseline else {"psnr": 40.0, "ssim": 0.9}
            record = made(job, prompt, metrics=metrics, chunk_latency_s=[1.0, 2.0])
            store = RecordStore(output_dir)
            write_lossless(store.video_path(record.key), np.zeros((48, 64, 64, 3), np.uint8), 24)
            trace().to_parquet(store.trace_path(record.key))
            store.save(record)


def test_tables(output_dir, check):
    make_records(output_dir, "main_table", 2)
    paired = "tables/magi_embedded_main_paired.csv"
    check(tables.main, [PROMPTS], {*forms("tables", "main"), paired})


def test_figures(output_dir, check):
    make_records(output_dir, "main_table", 6)
    drawn = forms("figures", "reuse_curve", "warmup_sweep", "pareto", "reuse_map")
    check(figures.main, [PROMPTS], {*drawn, "figures/magi_embedded_frames.png", *forms("tables", "reuse_curve")})


def test_ablations(output_dir, check):
    make_records(output_dir, "ablation_threshold", 3)
    stem = "ablation_threshold"
    check(ablations.main, ["experiment=ablation_threshold", PROMPTS], forms("tables", stem) | forms("figures", stem))


def test_long_video(output_dir, check, monkeypatch):
    make_records(output_dir, "long_video", 2)
    row = {"setting": "vanilla", "kv_mib": 1.0, "seconds": 1.0, "psnr": 60.0, "caption_right": True, "seam": 1.0}
    chunks = pd.DataFrame([{**row, "prompt": prompt, "chunk": chunk} for prompt in "ab" for chunk in range(20)])
    monkeypatch.setattr(long_video, "chunk_frame", lambda jobs: chunks)
    monkeypatch.setattr(long_video, "kv_frame", lambda jobs: chunks)
    check(long_video.main, [PROMPTS], forms("tables", "long_video") | forms("figures", "long_video", "kv_memory"))


def test_l1_rel(check, monkeypatch):
    monkeypatch.setattr(l1_rel, "measure", lambda job: process(velocity=True))
    check(l1_rel.main, [PROMPTS], forms("tables", "l1_rel") | forms("figures", "l1_rel", "l1_rel_steps"))


def test_paper_flops(check, monkeypatch):
    rows = pd.read_csv(TABLES / "magi_paper_flops.csv").to_dict("records")
    monkeypatch.setattr(paper_flops, "rows_of", lambda model: iter(rows))
    made = {f"tables/magi_paper_flops.{ending}" for ending in ("md", "tex", "csv")}
    check(paper_flops.main, ["model=magi"], made, counted=True)


def test_bench_gpu(check, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(gpu.torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        gpu.environment, "describe", lambda device: {"cpu": "a CPU", "packages": {"torch": "2"}, "revision": "abc"}
    )
    figures = {"matmul_tflops": 800.0, "matmul_size": 8192, "copy_bytes": 2**32, "copy_gb_per_s": 3000.0}
    calls = []
    case = gpu.Case("a_micro", lambda: calls.append(1) or figures, Work())
    monkeypatch.setattr(gpu, "all_cases", lambda *given: [case])
    check(bench.main, ["gpu", "cases=a"], {"gpu/H100/a_micro.json", "gpu/H100/summary.md"})
    assert len(calls) == 1  # what is measured is published, not measured again


def test_the_report_has_no_place_in_results(output_dir, capsys):
    make_records(output_dir, "main_table", 2)
    assert report.main([PROMPTS, f"output_dir={output_dir}", "publish=true"]) == 2
    assert "has no key 'publish'" in capsys.readouterr().err
    assert report.main([PROMPTS, f"output_dir={output_dir}"]) == 0
    assert str(output_dir / "report" / "magi_embedded" / "index.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "publish", "others"),
    [
        (["model=magi"], False, ["model=magi"]),
        (["publish=true", "model=magi"], True, ["model=magi"]),
        (["publish=true", "publish=false"], False, []),
    ],
)
def test_publishing_is_asked_for_by_name(arguments, publish, others):
    assert publishing(arguments) == (publish, others)


@pytest.mark.parametrize("value", ["", "yes", "True", "results"])
def test_publishing_is_true_or_false(value):
    with pytest.raises(BadInput, match=f"publish={value} must be true, which writes into results/, or false"):
        publishing([f"publish={value}"])

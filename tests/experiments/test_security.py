"""The claims of SECURITY.md that no other test holds."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from dataclasses import asdict, replace

import pytest

from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import make_job
from experiments.job.method import make_method
from experiments.job.paths import ROOT
from experiments.records import RecordStore, new_record
from experiments.run.runner import Runner
from experiments.show.report import build
from flowcache import generate
from flowcache.method import VANILLA
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.magi import Magi
from tests.experiments.broken_checkpoints import EMBEDDED, removed, sign, tokenizer_with_code, whole

PROMPT = "a red circle moving right on a dark background"


def test_every_test_that_security_names_exists():
    text = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    files = set(re.findall(r"`((?:\w+/)?test_\w+\.py)", text))
    assert files >= {"experiments/test_bad_input.py", "test_security.py", "eval/test_lpips.py", "eval/test_video_io.py"}
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    for file in files:
        assert file.split("/")[-1] in sources
    for file, test in re.findall(r"(\w+\.py)::(\w+)", text):
        assert f"def {test}(" in sources[file]
    for case in ("index leads elsewhere", "text encoder lacks weights"):
        assert f'"{case}")' in text
        assert f'"{case}"' in sources["broken_checkpoints.py"]


def test_a_configuration_is_code(tmp_path, monkeypatch):
    """Naming a class imports its module: that is the claim. Only what is a part of a method is then made."""
    (tmp_path / "of_a_stranger.py").write_text(
        "from pathlib import Path\n"
        "from flowcache.reuse.never import Never\n"
        "Path(__file__).with_suffix('.ran').touch()\n"
        "class Theirs(Never): pass\n"
        "def harm(**options): Path(__file__).with_suffix('.called').touch()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = make_method(compose_config(["method=vanilla", "reuse._target_=of_a_stranger.Theirs"]))
    assert type(method.reuse).__name__ == "Theirs"
    assert (tmp_path / "of_a_stranger.ran").exists()
    with pytest.raises(BadInput, match=r"of_a_stranger\.harm' is no flowcache\.reuse\.base\.ReusePolicy"):
        make_method(compose_config(["method=vanilla", "reuse._target_=of_a_stranger.harm"]))
    assert not (tmp_path / "of_a_stranger.called").exists()


@pytest.mark.parametrize("vocabulary", ["there", "missing"])
def test_a_tokenizer_brings_no_code(tmp_path, vocabulary):
    directory = whole(tmp_path / "checkpoint")
    tokenizer_with_code(directory)
    if vocabulary == "missing":
        removed("t5/tokenizer.json")(directory)
        (directory / "t5" / "spiece.model").write_bytes(b"")
    with contextlib.suppress(CheckpointError):  # refused or not: what counts is that its code stays unread
        Magi.from_pretrained(directory)
    assert not sign(directory).exists()


def test_loading_and_generating_use_no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = Magi.from_pretrained(EMBEDDED)
    frames = list(generate(model, PROMPT, 24, VANILLA, 1, num_steps=4))
    assert [len(chunk) for chunk in frames] == [24]


def test_prompts_name_no_files(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a cat\n", encoding="utf-8")
    listed = tmp_path / "prompts.txt"
    listed.write_text(f"{secret}\n../../secret.txt\n", encoding="utf-8")
    for given in (f"prompts={listed}", f"prompts=[{secret},../../secret.txt]"):
        job = make_job(compose_config([given, f"output_dir={tmp_path / 'results'}"]))
        assert job.prompts == (str(secret), "../../secret.txt")
        store = RecordStore(job.output_dir)
        for prompt in job.prompts:
            key = new_record(job, job.method_name, job.method, prompt).key
            assert re.fullmatch("[0-9a-f]{16}-[0-9a-f]{16}", key)
            for path in (store.video_path(key), store.preview_path(key), store.trace_path(key), store.record_path(key)):
                assert path.resolve().is_relative_to(job.output_dir.resolve())


def test_the_report_escapes_what_a_prompt_says(small_job, tmp_path):
    prompt = "a red circle</script><script>alert('a cat')</script><img src=x onerror=alert(1)>"
    job = replace(small_job("method=vanilla", "setting.num_frames=24", "metrics=[psnr]"), prompts=(prompt,))
    Runner(job).run()
    page = build(job, tmp_path / "report").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1)
    assert [clip["prompt"] for clip in json.loads(data)["clips"]] == [prompt]


WRONG_TYPES = {"artifacts": None, "prompt": 7, "flops": "many", "metrics": {"psnr": [1.0]}, "environment": "a machine"}


@pytest.mark.parametrize("damage", ["binary", "a list", "nested", "another's key", "unknown entries", *WRONG_TYPES])
def test_foreign_records_count_as_none(small_job, damage):
    job = small_job("method=vanilla", "num_prompts=1")
    store, record = RecordStore(job.output_dir), new_record(job, job.method_name, job.method, job.prompts[0])
    record.status = "finished"
    document = asdict(record)
    content = {
        "binary": b"\xff\xfe\0\1",
        "a list": b"[1, 2]",
        "nested": b"[" * 100_000,
        "another's key": json.dumps(document | {"key": "../../elsewhere"}).encode(),
        "unknown entries": json.dumps(document | {"run_this": "rm"}).encode(),
        **{name: json.dumps(document | {name: value}).encode() for name, value in WRONG_TYPES.items()},
    }[damage]
    path = store.record_path(record.key)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    assert store.find(record.key) == record  # nothing but what follows is wrong with it
    path.write_bytes(content)
    assert store.find(record.key) is None
    assert list(store.all()) == []

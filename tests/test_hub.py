"""Checkpoints by their name on the hub: what is asked of it, and what is said where it gives nothing."""

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from experiments.job.paths import ROOT, inside_root
from experiments.studies import recommend
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.hub import on_disk
from flowcache.models.magi import Magi

EMBEDDED = ROOT / "experiments" / "embedded"


class Hub:
    """Stands for the hub: its snapshot is a folder here, and what it was asked for is kept."""

    def __init__(self, snapshot: Path) -> None:
        self.snapshot, self.asked = snapshot, []

    def __call__(self, repository, revision, allow_patterns):
        self.asked.append((repository, revision, allow_patterns))
        return str(self.snapshot)


@pytest.fixture
def hub(monkeypatch):
    stands_in = Hub(EMBEDDED)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stands_in)
    return stands_in


def test_a_path_is_itself_and_nothing_is_asked(hub):
    assert on_disk("some/where") == on_disk(Path("some/where")) == Path("some/where")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "place", "asked"),
    [
        ("hf://own.er/na-me_1", EMBEDDED, ("own.er/na-me_1", None)),
        ("hf://owner/name/", EMBEDDED, ("owner/name", None)),
        ("hf://owner/name@v1.0", EMBEDDED, ("owner/name", "v1.0")),
        ("hf://owner/name@refs/pr/1", EMBEDDED, ("owner/name", "refs/pr/1")),
        ("hf://owner/name/magi", EMBEDDED / "magi", ("owner/name", None)),
        ("hf://owner/name/magi/vae@abc", EMBEDDED / "magi" / "vae", ("owner/name", "abc")),
        ("hf://owner/name/magi/config.json", EMBEDDED / "magi" / "config.json", ("owner/name", None)),
    ],
)
def test_a_name_is_what_is_downloaded_under_it(name, place, asked, hub):
    assert on_disk(name) == inside_root(name) == place
    assert hub.asked[0][:2] == asked


def test_of_a_folder_come_its_files_and_what_several_share_around_it_alone(hub):
    on_disk("hf://owner/name")
    assert hub.asked[-1][2] is None
    on_disk("hf://owner/name/magi")
    patterns = hub.asked[-1][2]

    def taken(file):
        return any(fnmatch(file, pattern) for pattern in patterns)

    assert all(taken(file) for file in ("magi/config.json", "magi/t5/a.json", "vae/config.json", "special_tokens.npz"))
    assert not any(taken(file) for file in ("README.md", "skyreels/config.json", "magi2/config.json", "a/vae/b"))
    hub.snapshot = EMBEDDED / "magi"
    on_disk("hf://owner/name/vae/config.json")
    patterns = hub.asked[-1][2]
    assert taken("vae/config.json")
    assert not taken("config.json")


@pytest.mark.parametrize("name", ["hf://", "hf://owner", "hf://owner/", "hf://own er/name", "hf://owner/name@"])
def test_what_is_no_name_is_refused_and_nothing_asked(name, hub):
    with pytest.raises(CheckpointError, match=r"is no name of a checkpoint on the hub; write hf://owner/name"):
        on_disk(name)
    assert hub.asked == []


def test_a_folder_that_the_repository_lacks_is_told(hub):
    with pytest.raises(CheckpointError, match=r"owner/name has no nowhere; see its files on the hub"):
        on_disk("hf://owner/name/nowhere")


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no network\nand more"), ValueError("no network"), OSError()]
)
def test_what_cannot_be_downloaded_is_told_in_one_line(error, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(CheckpointError) as raised:
        on_disk("hf://owner/name")
    assert "\n" not in str(raised.value)
    reason = "no network" if str(error) else "OSError"
    assert f"hf://owner/name could not be downloaded ({reason}); check the name and the network" in str(raised.value)


def test_a_command_says_what_cannot_be_downloaded(monkeypatch, capsys):
    def fails(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    arguments = ["model=magi", "setting=paper", "checkpoint=hf://owner/name"]
    assert recommend.main(arguments) == 2
    assert "recommend: hf://owner/name could not be downloaded (no network); check" in capsys.readouterr().err


def test_a_model_is_loaded_by_name(hub):
    assert Magi.from_pretrained("hf://owner/name/magi").config.runtime.num_steps == 64
    assert hub.asked[0][:2] == ("owner/name", None)

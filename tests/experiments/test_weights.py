"""The hash of a checkpoint: of every file that is loaded from it, and of no other."""

import pytest

from experiments.job.paths import ROOT
from experiments.records import weights
from flowcache.checkpoints import loaded_files
from tests.experiments.broken_checkpoints import whole


def test_large_weights_are_hashed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "LARGE_BYTES", 100)
    before = fresh_hash(whole(tmp_path / "checkpoint"))
    monkeypatch.setattr(weights, "sha256", lambda path: pytest.fail("hashed again"))
    assert fresh_hash(tmp_path / "checkpoint") == before


def fresh_hash(checkpoint):
    weights.weights_hash.cache_clear()
    return weights.weights_hash(checkpoint)


def test_the_embedded_weights_keep_their_hashes():
    """Of published results: whatever changes these makes every video anew."""
    embedded = ROOT / "experiments" / "embedded"
    hashes = {name: weights.weights_hash(embedded / name) for name in ("magi", "skyreels")}
    assert hashes == {"magi": "2d85d0d28a58d705", "skyreels": "618ace0aed3eed24"}


@pytest.mark.parametrize("part", ["vae", "t5", "special_tokens.safetensors"])
def test_weights_around_a_checkpoint_count_where_they_are_loaded_from(tmp_path, part):
    """MAGI-1 as downloaded has its VAE and text encoder in folders above."""
    directory = whole(tmp_path / "downloaded" / "magi" / "4.5B_distill")
    before = fresh_hash(directory)
    above = (directory / part).rename(tmp_path / "downloaded" / part)
    assert fresh_hash(directory) == before
    changed = next(above.glob("*.safetensors")) if above.is_dir() else above
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.unlink()  # a link to the embedded one
    changed.write_bytes(content)
    assert fresh_hash(directory) != before


def test_files_that_nothing_is_loaded_from_do_not_count(tmp_path):
    directory = whole(tmp_path / "checkpoint")
    before = fresh_hash(directory)
    stray = directory / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    stray.parent.mkdir(parents=True)
    for path in (stray, directory / ".gitattributes", directory / "vae" / "of_my_own.txt"):
        path.write_text("1793000000.0", encoding="utf-8")
    assert fresh_hash(directory) == before


@pytest.mark.parametrize("model", ["magi", "skyreels"])
def test_all_that_an_embedded_checkpoint_holds_counts(model):
    directory = ROOT / "experiments" / "embedded" / model
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert set(loaded_files(directory)) == names - {"README.md"}

"""`checkpoint=` alone chooses model and setting: every family's layout, what does not fit, and what nobody knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.job.errors import BadInput
from experiments.job.errors import command as guarded
from experiments.job.paths import ROOT
from experiments.job.recognise import recognised
from flowcache.models.magi.config import NETWORKS as MAGI_NETWORKS
from flowcache.models.magi.network import MagiDit
from flowcache.models.skyreels.config import NETWORKS as SKYREELS_NETWORKS
from flowcache.models.wan.config import NETWORKS as WAN_NETWORKS
from tests.models.headers import write_sparse
from tests.models.wan_files import averaged, original_config, write_diffusers, write_published, write_sparse_pickle

EMBEDDED = ROOT / "experiments" / "embedded"
SMALL = "a network of its own, 192 channels wide"


def write_json(path: Path, document: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def added(*arguments: str) -> list[str]:
    """What recognition puts beside the checkpoint; the rest stays as it is."""
    found = recognised(list(arguments))
    place = next((p for p, argument in enumerate(arguments) if argument.startswith("checkpoint=")), 0) + 1
    new = len(found) - len(arguments)
    assert [*found[:place], *found[place + new :]] == list(arguments)
    return found[place : place + new]


@pytest.mark.parametrize(
    ("folder", "model", "family"),
    [
        ("magi", "magi", "MAGI-1"),
        ("skyreels", "skyreels", "SkyReels-V2"),
        ("wan", "wan", "causal Wan"),
        ("wan_teacher", "wan_multistep", "causal Wan"),
    ],
)
def test_small_checkpoints_of_this_repository(folder, model, family, capsys):
    assert added(f"checkpoint={EMBEDDED / folder}") == [f"model={model}", "setting=embedded"]
    assert capsys.readouterr().err == f"checkpoint: {family}, {SMALL} -> model={model} setting=embedded\n"


# Full size, of headers and configurations alone.


def magi_without_configuration(folder: Path) -> Path:
    with torch.device("meta"):
        write_sparse(
            folder / "inference_weight.distill" / "model.safetensors", MagiDit(MAGI_NETWORKS["4.5B"]).state_dict()
        )
    return folder


def skyreels_of_diffusers(folder: Path) -> Path:
    config = {"_class_name": "SkyReelsV2Transformer3DModel", **SKYREELS_NETWORKS["1.3B"]}
    return write_json(folder / "transformer" / "config.json", config).parents[1]


def original_skyreels(folder: Path) -> Path:
    config = original_config() | {"dim": 5120, "num_heads": 40, "num_layers": 40, "inject_sample_info": False}
    return write_json(folder / "config.json", config).parent


def wan_of_diffusers(folder: Path) -> Path:
    config = {"_class_name": "WanTransformer3DModel", **WAN_NETWORKS["14B"]}
    return write_json(folder / "transformer" / "config.json", config).parents[1]


def many_steps(folder: Path) -> Path:
    write_json(folder / "sampling.json", {"solver": "unipc", "num_steps": 50})
    return wan_of_diffusers(folder)


def published(folder: Path, name: str = "self_forcing_dmd.pt") -> Path:
    shapes = {"generator_ema": {"model.patch_embedding.weight": (1536, 16, 1, 2, 2)}}
    return write_sparse_pickle(folder / name, shapes)


def published_of_many_steps(folder: Path) -> Path:
    return published(folder / "chunkwise", "ar_diffusion.pt")


@pytest.mark.parametrize(
    ("write", "model", "name"),
    [
        (magi_without_configuration, "magi", "MAGI-1, 4.5B"),
        (skyreels_of_diffusers, "skyreels", "SkyReels-V2, 1.3B"),
        (original_skyreels, "skyreels", "SkyReels-V2, 14B"),
        (wan_of_diffusers, "wan", "causal Wan, 14B"),
        (many_steps, "wan_multistep", "causal Wan, 14B"),
        (published, "wan", "causal Wan, 1.3B"),
        (published_of_many_steps, "wan_multistep", "causal Wan, 1.3B"),
    ],
)
def test_full_size_takes_the_papers_setting(write, model, name, tmp_path, capsys):
    path = write(tmp_path)
    assert added(f"checkpoint={path}") == [f"model={model}", "setting=paper"]
    assert capsys.readouterr().err == f"checkpoint: {name} -> model={model} setting=paper\n"


def test_a_published_file_of_no_released_size_is_known_by_its_configuration(tmp_path):
    path = write_published(tmp_path / "mine.pt", generator_ema=averaged())
    assert added(f"checkpoint={path}") == ["model=wan", "setting=embedded"]
    assert added(f"checkpoint={write_diffusers(tmp_path / 'folder')}") == ["model=wan", "setting=embedded"]


def test_what_is_given_wins(capsys):
    checkpoint = f"checkpoint={EMBEDDED / 'skyreels'}"
    assert added(checkpoint, "setting=paper") == ["model=skyreels"]
    assert added(checkpoint, "model=skyreels") == ["setting=embedded"]
    capsys.readouterr()
    assert added(checkpoint, "model=skyreels", "setting=paper") == []
    assert added(f"checkpoint={EMBEDDED / 'wan_teacher'}", "model=wan", "setting=paper") == []  # of the same family
    assert added("method=vanilla") == added("checkpoint=null") == added("checkpoint=7") == []
    assert added(checkpoint, "model.loader=mine.load") == []
    assert capsys.readouterr().err == ""


def test_another_model_than_the_files_are_of_is_refused():
    path = EMBEDDED / "wan"
    message = f"model=magi does not fit checkpoint={path}, whose files are those of causal Wan, .*; give model=wan, or"
    with pytest.raises(BadInput, match=message):
        recognised([f"checkpoint={path}", "model=magi", "setting=embedded"])
    with pytest.raises(BadInput, match="model=magi does not fit"):
        recognised([f"checkpoint={path}", "model=wan,magi"])


def test_nothing_that_is_known(tmp_path):
    with pytest.raises(BadInput, match=r"no checkpoint of MAGI-1 \(inference_weight.*of Wan \(.*of SkyReels-V2 \("):
        recognised([f"checkpoint={tmp_path}"])
    with pytest.raises(BadInput, match="magi, skyreels, wan, wan_teacher in it look like some"):
        recognised([f"checkpoint={EMBEDDED}"])
    with pytest.raises(BadInput, match=r"no checkpoint directory at .*nowhere"):
        recognised([f"checkpoint={tmp_path / 'nowhere'}"])
    assert added(f"checkpoint={tmp_path}", "model=magi") == []  # whose loader says what is missing
    write_json(tmp_path / "transformer" / "config.json", {"_class_name": "CogVideoXTransformer3DModel"})
    with pytest.raises(BadInput, match=r"is of CogVideoXTransformer3DModel, .*expected SkyReelsV2Transformer3DModel"):
        recognised([f"checkpoint={tmp_path}"])


def test_a_file_out_of_a_folder_leads_to_the_folder(tmp_path):
    for file in ("magi/config.json", "magi/inference_weight.distill/model.safetensors", "wan/sampling.json"):
        with pytest.raises(
            BadInput, match=f"is one file of .* a folder; give checkpoint={EMBEDDED / file.split('/')[0]}$"
        ):
            recognised([f"checkpoint={EMBEDDED / file}"])
    strange = write_sparse_pickle(tmp_path / "lora.pt", {"lora": {"a": (2, 2)}})
    with pytest.raises(BadInput, match=r"lora.pt has no weights"):
        recognised([f"checkpoint={strange}"])
    for name in ("one.pt", "two.pt"):
        published(tmp_path / "two", name)
    with pytest.raises(BadInput, match=r"holds 2 checkpoints \(one.pt, two.pt\); give the path of one"):
        recognised([f"checkpoint={tmp_path / 'two'}"])


def test_damage_is_left_for_loading_to_say(tmp_path, capsys):
    (tmp_path / "inference_weight").mkdir()
    assert added(f"checkpoint={tmp_path}") == ["model=magi"]
    assert "of a size that its files do not tell -> model=magi\n" in capsys.readouterr().err


def test_checkpoints_of_a_multirun_must_be_alike(tmp_path):
    alike = f"checkpoint={EMBEDDED / 'wan'},{write_diffusers(tmp_path)}"
    assert added("-m", alike) == ["model=wan", "setting=embedded"]
    with pytest.raises(BadInput, match=r"need different choices: .*MAGI-1.*causal Wan.*; run a command for each"):
        recognised(["-m", f"checkpoint={EMBEDDED / 'magi'},{EMBEDDED / 'wan'}"])


def test_every_command_takes_a_checkpoint_alone(command):
    smallest = ["device=meta", "method=vanilla", "setting.num_frames=21"]
    code, said = command(*smallest, f"checkpoint={EMBEDDED / 'wan'}")
    assert (code, said) == (0, f"checkpoint: causal Wan, {SMALL} -> model=wan setting=embedded\n")
    assert "wan / embedded / vanilla: dry run" in command.printed
    code, said = command("seed=1", f"checkpoint={EMBEDDED / 'wan'}", *smallest, "-m")
    assert code == 0
    code, said = command(f"checkpoint={EMBEDDED / 'wan'}", "model=skyreels")
    assert code == 2
    assert said.startswith("run.py: model=skyreels does not fit ")
    assert len(said.splitlines()) == 1


def test_commands_beside_run_take_it_too(capsys):
    taken: list[list[str]] = []

    @guarded("any")
    def main(arguments: list[str]) -> int:
        taken.append(arguments)
        return 0

    assert main(["latency", f"checkpoint={EMBEDDED / 'wan_teacher'}", "seed=1"]) == 0
    assert taken[0][2:] == ["model=wan_multistep", "setting=embedded", "seed=1"]
    assert main([f"checkpoint={EMBEDDED / 'wan'}", "model=magi"]) == 2
    assert "any: model=magi does not fit" in capsys.readouterr().err
    assert len(taken) == 1

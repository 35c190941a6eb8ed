"""Train an embedded model: ``python -m experiments.train_embedded model=magi|skyreels|wan [option=value ...]``.

Stages: autoencoder, transformer with its text encoder, decoder polish, export, and a check of the autoencoder. Each
saves as it goes; the same command after a kill continues where it stopped. Options override the recipe in
conf/training/<model>.yaml, for example ``dit.recipe.num_steps=100``; ``initial=<checkpoint directory>`` keeps that
checkpoint's autoencoder and trains its transformer on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from experiments.job.errors import BadInput, command
from experiments.job.groups import CONF, config_files
from experiments.job.names import nearest
from experiments.job.paths import ROOT

NUM_ROUND_TRIPS = 16  # clips that the finished autoencoder is measured on


@command("train_embedded")
def main(arguments: list[str]) -> int:
    options = OmegaConf.from_dotlist([argument for argument in arguments if argument != "debug=true"])
    name, known = options.pop("model", "magi"), [path.stem for path in config_files("training")]
    if name not in known:
        raise BadInput(f"no recipe for model={name}; {nearest(str(name), known)}")
    base = OmegaConf.load(CONF / "training" / f"{name}.yaml")
    OmegaConf.set_struct(base, True)
    recipe = OmegaConf.to_container(OmegaConf.merge(base, options), resolve=True)
    if recipe["dit"]["recipe"].get("guidance", 1) != 1 and recipe["initial"] is None:
        raise BadInput("dit.recipe.guidance distils a checkpoint; name it with initial=<checkpoint directory>")
    FAMILIES[name](recipe)
    return 0


def train_magi(recipe: dict) -> None:
    """All stages of the embedded MAGI-1."""
    from experiments.training.export import export_magi
    from experiments.training.initial import start_magi
    from experiments.training.magi_dit import train_dit
    from experiments.training.magi_vae import MagiAutoencoder
    from flowcache.models.magi.config import DitConfig
    from flowcache.models.magi.vae import VaeConfig

    vae = VaeConfig(**recipe["vae"]["config"])
    transformer = partial(train_dit, vae, DitConfig(**recipe["dit"]["config"]), recipe["dit"]["t5"])
    if recipe["initial"] is not None:
        start_magi(ROOT / recipe["initial"], recipe, ROOT / recipe["directory"])
    train(recipe, partial(MagiAutoencoder, vae), transformer, export_magi)


def train_skyreels(recipe: dict) -> None:
    """All stages of the embedded SkyReels-V2."""
    from experiments.training.export import export_skyreels
    from experiments.training.initial import start_skyreels
    from experiments.training.skyreels_dit import train_transformer
    from experiments.training.skyreels_vae import WanAutoencoder
    from flowcache.models.skyreels.config import Sampling

    vae, dit = recipe["vae"]["config"], recipe["dit"]
    sampling = Sampling(**recipe["sampling"])
    transformer = partial(train_transformer, vae, dit["transformer"], dit["text"], sampling)
    if recipe["initial"] is not None:
        start_skyreels(ROOT / recipe["initial"], recipe, ROOT / recipe["directory"])
    train(recipe, partial(WanAutoencoder, **vae), transformer, export_skyreels)


def train_wan(recipe: dict) -> None:
    """The embedded causal Wan: a teacher, starting as SkyReels-V2 or as an older one, and its student of few steps."""
    from experiments.training.export import export_wan, link_shared_weights
    from experiments.training.initial import start_wan
    from experiments.training.session import run_workers
    from experiments.training.wan_dit import train_teacher
    from experiments.training.wan_student import train_student

    if recipe["initial"] is None:
        raise BadInput(
            "the embedded causal Wan has no autoencoder of its own; give initial=experiments/embedded/skyreels"
        )
    directory, dit, teacher = ROOT / recipe["directory"], recipe["dit"], recipe["dit"]["recipe"]
    networks = recipe["vae"]["config"], dit["transformer"], dit["text"]
    start_wan(ROOT / recipe["initial"], recipe, directory)
    run_workers(train_teacher, recipe["num_processes"], *networks, teacher, directory)
    run_workers(train_student, recipe["num_processes"], *networks, teacher | recipe["student"]["recipe"], directory)
    for weights, sampling, destination in (
        ("student", recipe["sampling"], recipe["destination"]),
        ("dit", recipe["teacher_sampling"], recipe["teacher_destination"]),
    ):
        export_wan(recipe, directory, weights, sampling, ROOT / destination)
        if (ROOT / destination).is_relative_to(ROOT):  # its autoencoder is in this repository once already
            link_shared_weights(ROOT / destination, ROOT / recipe["initial"])
        print(f"the checkpoint is in {destination}")


def train(
    recipe: dict,
    autoencoder: Callable[[], Any],
    train_transformer: Callable[[dict, Path], None],
    export: Callable[[dict, Path, Path], None],
) -> None:
    """Autoencoder, transformer, the decoder once more, and the checkpoint."""
    from eval.scenes import held_out_scenes
    from experiments.training.autoencoder import load_autoencoder, polish_decoder, round_trip_psnr, train_vae
    from experiments.training.session import run_workers

    directory, destination, workers = ROOT / recipe["directory"], ROOT / recipe["destination"], recipe["num_processes"]
    trains_autoencoder = recipe["initial"] is None or recipe["vae"]["train_on"]
    if trains_autoencoder:
        run_workers(train_vae, workers, autoencoder, recipe["vae"]["recipe"], directory)
    run_workers(train_transformer, workers, recipe["dit"]["recipe"], directory)
    if trains_autoencoder:
        run_workers(polish_decoder, workers, autoencoder, recipe["decoder"]["recipe"], directory)
    export(recipe, directory, destination)
    vae, num_frames = load_autoencoder(autoencoder, directory / "decoder.pt"), recipe["vae"]["check_frames"]
    psnr = round_trip_psnr(vae, held_out_scenes()[:NUM_ROUND_TRIPS], num_frames)
    print(
        f"autoencoder: {mean(psnr):.1f} dB there and back, lowest {min(psnr):.1f} dB "
        f"({len(psnr)} held-out clips of {num_frames} frames)"
    )
    print(f"the checkpoint is in {recipe['destination']}")


FAMILIES = {"magi": train_magi, "skyreels": train_skyreels, "wan": train_wan}

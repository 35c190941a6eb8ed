"""Train an embedded model: ``python -m experiments.train_embedded model=magi [initial=<checkpoint directory>]``.

Stages: autoencoder, transformer with its text encoder, decoder polish, export. Each saves as it goes; the same command
after a kill continues where it stopped. With ``initial``, that checkpoint's autoencoder is kept and its transformer
trained on. Options override the recipe in conf/training/<model>.yaml, for example
``dit.recipe.num_steps=100``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    try:
        options = OmegaConf.from_dotlist(arguments)
        name = options.pop("model", "magi")
        path = ROOT / "conf" / "training" / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise ValueError(f"no recipe for model={name}; there is one for {known}")
        base = OmegaConf.load(path)
        OmegaConf.set_struct(base, True)
        recipe = OmegaConf.to_container(OmegaConf.merge(base, options), resolve=True)
    except (ValueError, OmegaConfBaseException) as error:
        print(f"train_embedded: {error}", file=sys.stderr)
        return 2
    train_magi(recipe)
    return 0


def train_magi(recipe: dict) -> None:
    """All stages of the embedded MAGI-1."""
    from experiments.training.export import export_magi
    from experiments.training.initial import start_from
    from experiments.training.magi_dit import train_dit
    from experiments.training.magi_vae import polish_decoder, train_vae
    from experiments.training.session import run_workers
    from flowcache.models.magi.config import DitConfig
    from flowcache.models.magi.vae import VaeConfig

    directory, workers = ROOT / recipe["directory"], recipe["num_processes"]
    vae = VaeConfig(**recipe["vae"]["config"])
    initial = recipe["initial"]
    if initial is None:
        run_workers(train_vae, workers, vae, recipe["vae"]["recipe"], directory)
    else:
        start_from(ROOT / initial, recipe, directory)
    dit = DitConfig(**recipe["dit"]["config"])
    run_workers(train_dit, workers, vae, dit, recipe["dit"]["t5"], recipe["dit"]["recipe"], directory)
    if initial is None:
        run_workers(polish_decoder, workers, vae, recipe["decoder"]["recipe"], directory)
    export_magi(recipe, directory, ROOT / recipe["destination"])
    print(f"the checkpoint is in {recipe['destination']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

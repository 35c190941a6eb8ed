"""From a resolved configuration to the objects of a job, with every mistake found before any work."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from baselines.vanilla import VanillaConfig
from experiments.job.device import (
    MOST_THREADS,
    check_device,
    check_kernel,
    default_threads,
    default_workers,
    known_device,
)
from experiments.job.errors import BadInput
from flowcache.kernels import ATTENTION_BACKENDS, AUTO
from flowcache.method import MethodConfig, ReplayConfig
from flowcache.models.base import MOST_SEED
from flowcache.models.checkpoint import CheckpointError

# What cannot be imported is said once, by the BadInput.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)

ROOT = Path(__file__).parents[2]
WANDB_MODES = ("offline", "online", "disabled")
MOST_PROMPT_CHARACTERS = 10_000  # no text encoder here reads more than 800 tokens of them
RANDOM_MARK = " [random weights]"  # of the methods' names in every record of such weights
BASELINES = {  # methods that compute everything
    "vanilla": VanillaConfig(),
    "vanilla_causal": VanillaConfig(attention="causal"),
    "vanilla_kv": VanillaConfig(attention="cached"),
}
METRICS = ("psnr", "psnr_frame", "ssim", "ssim_skimage", "lpips", "lpips_vgg", "caption")


@dataclass(frozen=True)
class Job:
    """One model, one setting, one method, some prompts.

    ``generation_options`` are what the model's ``generation`` takes beyond prompt, frames, method and seed.
    ``random_weights`` is None where the weights are the checkpoint's; otherwise what the loader of random ones takes
    beside a checkpoint, whose configuration then counts, if there is one.
    """

    model_name: str
    setting_name: str
    method_name: str
    method: MethodConfig
    prompts: tuple[str, ...]
    seed: int
    num_frames: int
    fps: int
    generation_options: dict[str, Any]
    checkpoint: Path | None
    loader: str
    random_weights: dict[str, Any] | None
    device: str
    attention_backend: str
    compile: bool
    metrics: tuple[str, ...]
    baseline: str
    latency_pairs: int
    workers: int
    threads: int
    output_dir: Path
    force: bool
    any_code: bool
    wandb: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a video's pixels, and what it is compared with, besides method, prompt, seed, weights, code."""
        return {
            "model": self.model_name,
            "setting": self.setting_name,
            "num_frames": self.num_frames,
            "device": torch.device(self.device).type,
            **self.generation_options,
            **({} if self.baseline == "vanilla" else {"baseline": self.baseline}),
            **({} if self.random_weights is None else {"weights": "random", **self.random_weights}),
            **({} if self.attention_backend == AUTO else {"attention_backend": self.attention_backend}),
            **({"compile": True} if self.compile else {}),
        }

    @property
    def baseline_name(self) -> str:
        """In records, of the method that videos are compared with."""
        return self.baseline if self.random_weights is None else self.baseline + RANDOM_MARK

    @property
    def baseline_method(self) -> MethodConfig:
        return BASELINES[self.baseline]

    @property
    def is_baseline(self) -> bool:
        return self.method == self.baseline_method

    def load_model(self) -> Any:
        """The model on the job's device, the same for all jobs of one checkpoint that follow each other.

        Raises BadInput for weights that are missing or wrong, and for a device that is not there.
        """
        check_device(self.device)
        options = None if self.random_weights is None else tuple(self.random_weights.items())
        try:
            return _load(self.loader, self.checkpoint, self.device, options, self.attention_backend, self.compile)
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            raise BadInput(str(error)) from error


@lru_cache(maxsize=1)  # the last one only: two models of full size do not fit a device
def _load(
    loader: str,
    checkpoint: Path | None,
    device: str,
    random: tuple[tuple[str, Any], ...] | None,
    attention_backend: str,
    compiled: bool,
) -> Any:
    from transformers.utils.logging import disable_progress_bar  # imported late: the dry run does without

    disable_progress_bar()  # it would draw into ours
    model = _loader(loader, checkpoint, device, random)()
    model.set_kernels(attention_backend, compiled)
    return model


def _loader(
    name: str, checkpoint: Path | None, device: str, random: tuple[tuple[str, Any], ...] | None
) -> Callable[[], Any]:
    """The function that a configuration names, with its arguments, if it takes such. Raises BadInput."""
    positional, named = (checkpoint,), {"device": device}
    if random is not None:
        positional, named = (), {**dict(random), "checkpoint": checkpoint, **named}
    try:
        loader = get_object(name)
        inspect.signature(loader).bind(*positional, **named)
    except Exception as error:  # whatever importing it raises
        raise BadInput(
            f"model.loader={name!r} is no loader of a model ({' '.join(str(error).split())}); expected a function of a "
            "checkpoint's directory and a device that returns a flowcache.models.base.VideoModel"
        ) from error
    return partial(loader, *positional, **named)


def make_job(config: DictConfig) -> Job:
    """Check a composed configuration and turn it into a Job. Raises BadInput with one clear message."""
    _check_types(config)
    setting, model, options = config.setting, config.model, generation_options(config)
    device, prompts = known_device(config.device), read_prompts(config)
    check_kernel(config.attention_backend, device)
    workers = default_workers(setting.embedded, device, len(prompts)) if config.workers is None else config.workers
    _whole_numbers({"workers": workers, "setting.fps": setting.fps}, smallest=1)
    _whole_numbers({"latency_pairs": config.latency_pairs})
    threads = default_threads(setting.embedded, device, workers) if config.threads is None else config.threads
    _whole_numbers({"threads": threads}, smallest=1)
    if config.threads is not None and threads > max(MOST_THREADS, os.cpu_count() or 1):
        raise BadInput(f"threads={threads} on {os.cpu_count()} cores only makes them wait for each other; lower it")
    method, method_name = make_method(config.method), config.method.name
    if config.replay is not None:
        from experiments.job.replay import read_decisions  # imported late: few jobs need pandas

        method = ReplayConfig.like(method, read_decisions(inside_root(config.replay)))
        method_name += ", replayed"
    random_weights = _random_weights(config)
    if random_weights is not None:
        if method.policy().distance is not None:
            raise BadInput(
                f"method {config.method.name} decides by {method.policy().distance} distances, which random weights "
                "make meaningless; give the decisions of a real run, replay=<its trace>"
            )
        method_name += RANDOM_MARK
    if not isinstance(config.metrics, ListConfig):
        raise BadInput(f"metrics={config.metrics} must be a list, such as metrics=[psnr,ssim]")
    unknown = [str(name) for name in config.metrics if name not in METRICS]
    if unknown:
        raise BadInput(f"unknown metric {unknown[0]!r}; {nearest(unknown[0], METRICS)}")
    if config.baseline not in BASELINES:
        raise BadInput(f"unknown baseline {str(config.baseline)!r}; {nearest(str(config.baseline), list(BASELINES))}")
    return Job(
        model_name=model.name,
        setting_name=setting.name,
        method_name=method_name,
        method=method,
        prompts=prompts,
        seed=config.seed,
        num_frames=setting.num_frames,
        fps=setting.fps,
        generation_options=options,
        checkpoint=_checkpoint(config) if random_weights is None else find_checkpoint(config),
        loader=model.loader if random_weights is None else model.random_loader,
        random_weights=random_weights,
        device=device,
        attention_backend=config.attention_backend,
        compile=config.compile,
        metrics=tuple(config.metrics),
        baseline=config.baseline,
        latency_pairs=config.latency_pairs,
        workers=workers,
        threads=threads,
        output_dir=inside_root(config.output_dir),
        force=bool(config.force),
        any_code=bool(config.any_code),
        wandb=_wandb(config),
    )


def check_config(config: DictConfig, here: bool = True) -> None:
    """Refuse a job that could not even begin, before anything is written. Raises BadInput.

    Where it will not run ``here``, another machine may have the device.
    """
    if config.device == "meta":
        _check_types(config)
        _wandb(config)
        make_method(config.method)
        generation_options(config)
    else:
        job = make_job(config)
        check_writable(job.output_dir)
        if here:
            check_device(job.device)


def check_writable(directory: Path) -> None:
    """Refuse a folder for results that is something else, or that this user cannot make or write. Raises BadInput."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"output_dir={directory}: {there} is a file; give output_dir=<folder>, which is made if needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(
            f"output_dir={directory}: {there} cannot be written; give output_dir=<folder that you can write>"
        )


def _check_types(config: DictConfig) -> None:
    for key in ("force", "any_code", "debug", "compile"):
        if not isinstance(config[key], bool):
            raise BadInput(f"{key}={config[key]} must be true or false")
    if not isinstance(config.setting.embedded, bool):
        raise BadInput(f"setting.embedded={config.setting.embedded} must be true or false")
    if config.attention_backend not in (AUTO, *ATTENTION_BACKENDS):
        known = (AUTO, *ATTENTION_BACKENDS)
        raise BadInput(
            f"attention_backend={config.attention_backend} is unknown; {nearest(str(config.attention_backend), known)}"
        )
    for key in ("device", "output_dir"):
        if not isinstance(config[key], str) or not config[key].strip() or "\0" in config[key]:
            raise BadInput(f"{key}={config[key]!r} must be a name; conf/config.yaml says which")
    for key in ("checkpoint", "replay"):
        if config[key] is not None and (not isinstance(config[key], str) or not config[key].strip("\0 ")):
            raise BadInput(f"{key}={config[key]!r} must be a path, or null")
    if config.plan is not None and not isinstance(config.plan, bool):
        raise BadInput(f"plan={config.plan} must be true, false or null")


def generation_options(config: DictConfig) -> dict[str, Any]:
    """What the model's ``generation`` takes beyond prompt, frames, method and seed.

    Raises BadInput if the setting's numbers or the seed are no whole ones; the model's own options the model checks.
    """
    setting = config.setting
    options = {"num_steps": setting.num_steps, "height": setting.height, "width": setting.width}
    _whole_numbers({"setting.num_frames": setting.num_frames, "seed": config.seed, **options})
    if config.seed > MOST_SEED:
        raise BadInput(f"seed={config.seed} is too large; choose 0 to {MOST_SEED}")
    own = OmegaConf.to_container(config.model.options)
    return options | {key: value for key, value in own.items() if value is not None}


def make_method(config: DictConfig) -> MethodConfig:
    """Instantiate a method's dataclass from its YAML; unknown keys name their nearest known one."""
    fields = {key: value for key, value in OmegaConf.to_container(config, resolve=True).items() if key != "name"}
    try:
        method = get_object(fields["_target_"])
    except Exception as error:  # whatever importing it raises
        raise BadInput(f"method._target_={fields['_target_']!r} cannot be imported ({error})") from error
    if not (isinstance(method, type) and issubclass(method, MethodConfig)):
        raise BadInput(f"method._target_={fields['_target_']!r} is no flowcache.method.MethodConfig")
    known = [f.name for f in dataclasses.fields(method)]
    for key in fields.keys() - {"_target_"}:
        if key not in known:
            raise BadInput(f"method {config.name} has no option {key!r}; {nearest(key, known)}")
    try:
        return instantiate(fields)
    except (InstantiationException, ValueError, TypeError) as error:
        raise BadInput(f"method {config.name}: {error.__cause__ or error}") from error


def read_prompts(config: DictConfig) -> tuple[str, ...]:
    """The job's prompts: a list, one prompt, or a file with one a line; then the first ``num_prompts`` of them."""
    source = config.prompts if config.prompts is not None else config.setting.prompts
    if source is None:
        raise BadInput(f"setting={config.setting.name} has no prompts of its own; give prompts=<file with one a line>")
    prompts = [prompt for prompt in _listed_prompts(source) if prompt.strip()]
    if not prompts:
        raise BadInput(f"there is no prompt in {source!r}; write one a line")
    for number, prompt in enumerate(prompts, start=1):
        _check_prompt(prompt, number)
    wanted = config.num_prompts
    if wanted is None and config.prompts is None:
        wanted = config.setting.num_prompts
    if config.debug:
        wanted = 1
    if wanted is not None and (not isinstance(wanted, int) or isinstance(wanted, bool)):
        raise BadInput(f"num_prompts={wanted!r} must be a whole number; choose 1 to {len(prompts)}")
    if wanted is not None and not 1 <= wanted <= len(prompts):
        raise BadInput(f"num_prompts={wanted} but there are {len(prompts)} prompts; choose 1 to {len(prompts)}")
    return tuple(prompts[:wanted])


def _listed_prompts(source: Any) -> list[str]:
    if isinstance(source, ListConfig):
        return [str(prompt) for prompt in source]
    if not isinstance(source, str):
        raise BadInput(f"prompts={source} must be a text file, one prompt, or a list")
    if len(source) > MOST_PROMPT_CHARACTERS or "\0" in source:  # no path
        return [source]
    path = inside_root(source)
    if os.path.isfile(path):  # Path.is_file raises for a text longer than a name may be
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
        except (OSError, UnicodeError) as error:
            raise BadInput(
                f"prompts={source} cannot be read as UTF-8 text ({error}); write one prompt a line"
            ) from error
    looks_like_a_path = " " not in source and source.startswith(("/", "./", "../", "~"))
    if looks_like_a_path or Path(source).suffix in (".txt", ".csv", ".json"):
        raise BadInput(f"no prompt file at {source}; give an existing text file with one prompt a line")
    return [source]


def _check_prompt(prompt: str, number: int) -> None:
    """Refuse what no caption is: it would steer a terminal, or be cut to a fraction by every text encoder."""
    if len(prompt) > MOST_PROMPT_CHARACTERS:
        raise BadInput(f"prompt {number} has {len(prompt)} characters; shorten it to {MOST_PROMPT_CHARACTERS}")
    for place, character in enumerate(prompt, start=1):
        if unicodedata.category(character) in ("Cc", "Cs") and character != "\t":
            raise BadInput(
                f"prompt {number} holds the control character U+{ord(character):04X} at place {place}; write plain text"
            )


def _wandb(config: DictConfig) -> dict[str, Any]:
    settings = OmegaConf.to_container(config.wandb, resolve=True)
    if settings["mode"] not in WANDB_MODES:
        raise BadInput(f"unknown wandb.mode {str(settings['mode'])!r}; {nearest(str(settings['mode']), WANDB_MODES)}")
    if not isinstance(settings["tags"], list):
        raise BadInput(f"wandb.tags={settings['tags']} must be a list: wandb.tags=[one,two]")
    return settings


def find_checkpoint(config: DictConfig) -> Path | None:
    """The directory of the weights, given or the setting's own; None where it has none."""
    if config.checkpoint is not None:
        return inside_root(config.checkpoint)
    return ROOT / config.model.embedded_checkpoint if config.setting.embedded else None


def refuse_random_weights(job: Job, what: str) -> None:
    """Raise BadInput for a job of random weights: ``what`` (with its verb) means nothing of them."""
    if job.random_weights is not None:
        raise BadInput(f"weights=random: {what} nothing of random weights; give checkpoint=<directory>")


def _random_weights(config: DictConfig) -> dict[str, Any] | None:
    if config.weights not in ("checkpoint", "random"):
        raise BadInput(f"weights={config.weights} is unknown; {nearest(str(config.weights), ('checkpoint', 'random'))}")
    if config.weights == "checkpoint":
        return None
    sizes = {key: value for key, value in config.model.on_meta.items() if key != "_target_"}
    return sizes if find_checkpoint(config) is None else {}


def _checkpoint(config: DictConfig) -> Path:
    checkpoint = find_checkpoint(config)
    if checkpoint is None:
        raise BadInput(
            f"setting={config.setting.name} needs the official weights: download them and give checkpoint=<directory>, "
            "or run setting=embedded, whose weights are in this repository; device=meta (a dry run) and weights=random "
            "(for speed alone) need none"
        )
    return checkpoint


def inside_root(path: str) -> Path:
    """Relative paths count from the repository, so that a job does not depend on where it is started."""
    path = str(path)
    return Path(path) if os.path.isabs(path) or os.path.exists(path) else ROOT / path


def _whole_numbers(values: dict[str, Any], smallest: int = 0) -> None:
    for key, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise BadInput(f"{key}={value!r} must be a whole number of at least {smallest}")


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """'did you mean ...?' with the nearest known name, and all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}there are {', '.join(sorted(known))}"

"""Stage 3: the embedded causal Wan, distilled to a few steps from its teacher.

The teacher's guided paths, on clean blocks before, are followed once and kept: their states at the few steps, and where
they end. The student, which starts as the teacher, learns to name a path's end from each of its states, without
guidance. First blocks, which have nothing but their caption and noise, have further paths of their own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from eval.atomic import atomic_path
from eval.scenes import Scene
from experiments.training.captions import build_tokenizer
from experiments.training.latents import encoded_clips
from experiments.training.precision import mixed_precision
from experiments.training.session import TrainingSession, is_main
from experiments.training.skyreels_dit import standardised
from experiments.training.skyreels_vae import WanAutoencoder
from experiments.training.wan_dit import TeacherForcing, TextAndWan, minimise
from flowcache.models.wan.attention import Pack
from flowcache.models.wan.text import NEGATIVE_PROMPT


def path_levels(num_steps: int, shift: float) -> Tensor:
    """Noise levels [num_steps + 1] of the teacher's steps, from 1 to 0."""
    even = torch.linspace(1, 0, num_steps + 1)
    return shift * even / (1 + (shift - 1) * even)


class Rollout:
    """All blocks of a clip side by side, each on the clean ones before it. The clean pass runs once.

    Args:
        clean: [1, C, f, h, w], what the blocks before look like.
        caption: of network.caption.
    """

    def __init__(self, model: TextAndWan, clean: Tensor, text: Tensor, block: int, cache: TeacherForcing) -> None:
        self.network, self.block, self.cache = model.network, block, cache
        self.frames, self.rows, self.columns = clean.shape[2:]
        self.caption = self.network.caption(text)
        rope = self.network.rope_table(self.frames, self.rows, self.columns)
        self.rope = tuple(table.flatten(0, 1) for table in rope)
        if self.frames > block:  # the last block's keys nobody reads
            self._pass(clean, torch.zeros(self.frames), noisy=False)

    def velocity(self, noisy: Tensor, level: Tensor) -> Tensor:
        """Of all blocks [1, C, f, h, w] at noise levels [f]."""
        x, table = self._pass(noisy, 1000 * level, clean=False)
        return self.network.head(x, table.embedding, self.rows, self.columns)

    def _pass(self, latent: Tensor, times: Tensor, clean: bool = True, noisy: bool = True):
        x, table = self.network.embed(latent), self.network.time_table(times)
        members = self.cache.members(x.shape[1] * self.block, clean, noisy)
        return self.network.blocks(x, table.modulation, self.caption, Pack(members, self.rope, self.cache)), table


class Teacher:
    """Follows guided paths of a clip's blocks."""

    def __init__(self, model: TextAndWan, recipe: dict) -> None:
        self.model, self.recipe = model, recipe
        self.levels = path_levels(recipe["path_steps"], recipe["shift"])
        self.kept = [round((1 - step / 1000) * recipe["path_steps"]) for step in recipe["steps"]]
        self.tokenizer = build_tokenizer(recipe["caption_length"])

    def text(self, caption: str) -> Tensor:
        return self.model.features(
            self.tokenizer([caption], padding="max_length", truncation=True, return_tensors="pt")
        )

    @torch.no_grad()
    def path(self, clean: Tensor, caption: str, noise: Tensor) -> Tensor:
        """States at the few steps, and the end: [K + 1, C, f, h, w]."""
        block, num_blocks = self.recipe["block_size"], clean.shape[2] // self.recipe["block_size"]
        branches = [
            Rollout(self.model, clean, self.text(text), block, TeacherForcing(num_blocks))
            for text in (caption, NEGATIVE_PROMPT)
        ]
        latent, found, last = noise, [], None
        for index, (level, after) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            if index in self.kept:
                found.append(latent[0])
            conditional, unconditional = (each.velocity(latent, level.expand(clean.shape[2])) for each in branches)
            velocity = torch.lerp(unconditional, conditional, self.recipe["guidance"])
            taken = velocity
            if last is not None:  # Adams-Bashforth of two steps
                ratio = (after - level) / (2 * last[1])
                taken = velocity + ratio * (velocity - last[0])
            last = velocity, after - level
            latent = latent + (after - level) * taken
        return torch.stack([*found, latent[0]])


def followed_paths(teacher: Teacher, latents: Tensor, scenes: list[Scene], directory: Path, kind: str) -> Tensor:
    """This worker's paths, float16 [clips, K + 1, C, f, h, w], kept as they are made.

    ``kind``: "paths", of its first clips, or "openings", of clips' first blocks, again and again with other noise.
    """
    rank, num_processes, recipe = dist.get_rank(), dist.get_world_size(), teacher.recipe
    number, frames, per_file = recipe[f"num_{kind}"] // num_processes, recipe["block_size"], recipe["openings_per_file"]
    if kind == "paths":
        number, frames, per_file = min(number, len(scenes)), latents.shape[2], recipe["paths_per_file"]
    found: list[Tensor] = []
    while len(found) < number:
        path = directory / f"{kind}_{rank}_of_{num_processes}_{len(found)}.pt"
        if not path.exists():
            generator = torch.Generator().manual_seed(recipe["seed"] + 7919 * rank + len(found))
            made = []
            for pick in range(len(found), min(len(found) + per_file, number)):
                clean = latents[pick % len(scenes)][:, :frames].float()[None]
                noise, errors = torch.randn((2, *clean.shape), generator=generator)
                shown = clean + recipe["history_noise"] * errors
                with mixed_precision():
                    made.append(teacher.path(shown, scenes[pick % len(scenes)].caption, noise).half())
            with atomic_path(path) as temporary:
                torch.save(torch.stack(made), temporary)
            if is_main():
                print(f"followed {kind}", len(found) + len(made), "of", number, flush=True)
        found.extend(torch.load(path, weights_only=True))
    return torch.stack(found)


class Student:
    """The loss on kept paths [clips, K + 1, C, f, h, w], and on those of first blocks alone."""

    def __init__(
        self,
        model: TextAndWan,
        paths: Tensor,
        openings: Tensor,
        latents: Tensor,
        scenes: list[Scene],
        recipe: dict,
        session: TrainingSession,
    ) -> None:
        self.model, self.paths, self.openings, self.recipe = model, paths, openings, recipe
        self.latents, self.scenes = latents, scenes
        self.generator, self.choice = session.generator, session.choice
        levels = path_levels(recipe["path_steps"], recipe["shift"])
        self.levels = levels[[round((1 - step / 1000) * recipe["path_steps"]) for step in recipe["steps"]]]
        self.tokenizer = build_tokenizer(recipe["caption_length"])

    def losses(self) -> tuple[Tensor, Tensor]:
        """Mean squared error of the velocity towards a path's end: of the first blocks, and of the others."""
        clips, number = self._losses(self.paths, self.recipe["clips_per_process"]), self.recipe["openings_per_process"]
        first, others = [blocks[0] for blocks in clips], [blocks[1:].mean() for blocks in clips]
        first += [blocks[0] for blocks in self._losses(self.openings, number)]
        return torch.stack(first).mean(), torch.stack(others).mean()

    def _losses(self, paths: Tensor, number: int) -> list[Tensor]:
        """Each block's [blocks], of so many paths."""
        picks = self.choice.choices(range(len(paths)), k=number)
        captions = [self.scenes[pick % len(self.scenes)].caption for pick in picks]
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        texts = self.model.features(tokens).split(1)
        return [self.loss(paths[pick], pick % len(self.scenes), text) for pick, text in zip(picks, texts, strict=True)]

    def loss(self, path: Tensor, clip: int, text: Tensor) -> Tensor:
        """Of each block [blocks] of a path [K + 1, C, f, h, w] of a clip, or of its first frames."""
        block, path = self.recipe["block_size"], path.float()
        clean = self.latents[clip][:, : path.shape[2]].float()[None]
        num_blocks = clean.shape[2] // block
        step = torch.randint(len(self.levels), (num_blocks,), generator=self.generator).repeat_interleave(block)
        frames = torch.arange(clean.shape[2])
        state, end, level = path[step, :, frames].transpose(0, 1)[None], path[-1][None], self.levels[step]
        errors = torch.randn(clean.shape, generator=self.generator)
        shown = clean + self.recipe["history_noise"] * torch.rand((), generator=self.generator) * errors
        rollout = Rollout(self.model, shown, text, block, TeacherForcing(num_blocks))
        target = (state - end) / level[:, None, None]
        errors = (rollout.velocity(state, level) - target).square().mean(dim=(0, 1, 3, 4))
        return errors.unflatten(0, (num_blocks, -1)).mean(dim=1)


def train_student(vae: dict, transformer: dict, text: dict, recipe: dict, directory: Path) -> None:
    """From the teacher in ``dit.pt`` to ``student.pt``, both in ``directory``. Runs in every worker."""
    latents, scenes = encoded_clips(partial(WanAutoencoder, **vae), recipe["num_frames"], recipe, directory)
    latents = standardised(latents, directory)
    model = TextAndWan(transformer, text)
    model.load_state_dict(torch.load(directory / "dit.pt", weights_only=True)["model"])
    teacher = Teacher(model, recipe)
    paths, openings = (followed_paths(teacher, latents, scenes, directory, kind) for kind in ("paths", "openings"))
    session = TrainingSession(directory, "student", model, ("transformer.blocks",), recipe)
    minimise(Student(model, paths, openings, latents, scenes, recipe, session), session, recipe["first_block_weight"])

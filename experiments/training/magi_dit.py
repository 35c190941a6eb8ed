"""Stage 2: the embedded MAGI-1's transformer and its T5 encoder, trained together on clips as latents.

A quarter of the steps give every chunk a noise level of its own (diffusion forcing); the others put the chunks in a
state that the sampler really visits: finished ones clean and without a caption, four in the window a quarter of the
schedule apart, later ones absent.

Every step draws one of the step counts that the checkpoint is for: chunks in the window stand a quarter of its schedule
apart, and the network is told its step size.

With ``guidance`` above 1 the weights that training goes on from are distilled: where a chunk is noisiest the target is
their velocity guided towards the caption, as MAGI-1's distilled checkpoints were made to do without a second pass.
"""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from eval.atomic import atomic_path
from eval.scenes import Scene
from experiments.training.captions import build_tokenizer
from experiments.training.clips import draw_weights
from experiments.training.latents import encoded_clips
from experiments.training.magi_vae import MagiAutoencoder
from experiments.training.precision import mixed_precision
from experiments.training.session import TrainingSession, is_main
from flowcache.models.magi.attention import CaptionKv, Member
from flowcache.models.magi.config import DitConfig
from flowcache.models.magi.network import MagiDit, step_size_number
from flowcache.models.magi.text import DEFAULT_SPECIAL_TOKENS, DURATION, MAX_DURATION
from flowcache.models.magi.vae import VaeConfig
from flowcache.schedule import timesteps


class TextAndDit(nn.Module):
    """What stage 2 trains. Special tokens are fixed, as upstream's are: random vectors of the size of T5 features."""

    def __init__(self, dit: DitConfig, t5: T5Config, seed: int) -> None:
        super().__init__()
        self.dit = MagiDit(dit)
        self.t5 = T5EncoderModel(t5)
        names = ["HQ_TOKEN", *(f"{DURATION}_{n}" for n in range(1, MAX_DURATION + 1))]
        vectors = torch.randn(len(names), dit.caption_channels, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("special_tokens", vectors)
        self.special_token_names = names
        initialise(self.dit)


def initialise(dit: MagiDit) -> None:
    """Small final layer and open-but-gentle gates, so that training starts near the identity."""
    for name, parameter in dit.named_parameters():
        if parameter.ndim == 2 and "null_caption" not in name:
            nn.init.trunc_normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
    nn.init.zeros_(dit.final_linear.linear.weight)
    for layer in dit.videodit_blocks.layers:
        nn.init.constant_(layer.ada_modulate_layer.proj[0].bias, 0.5)


def scaled(latents: Tensor, directory: Path) -> Tensor:
    """Latents with a standard deviation of 1; the scale that does it goes to ``scale_factor.json``."""
    spread = latents[:256].float().std().reshape(1)
    dist.broadcast(spread, src=0)
    scale_factor = 1 / spread.item()
    if is_main():
        with atomic_path(directory / "scale_factor.json") as temporary:
            temporary.write_text(json.dumps(scale_factor), encoding="utf-8")
    return (latents.float() * scale_factor).half()


class Batches:
    """Noisy packs of chunks for one worker."""

    def __init__(
        self,
        latents: Tensor,
        scenes: list[Scene],
        model: TextAndDit,
        teacher: TextAndDit | None,
        recipe: dict,
        session: TrainingSession,
    ) -> None:
        self.latents, self.scenes, self.model, self.recipe = latents, scenes, model, recipe
        self.tables = {count: timesteps(count) for count in recipe["num_steps_of_schedule"]}
        self.generator, self.choice = session.generator, session.choice
        self.tokenizer = build_tokenizer()
        self.teacher = teacher
        self.weights = draw_weights(scenes, recipe)

    def independent(self) -> tuple[Tensor, list[Scene], Tensor, int]:
        """Clean chunks, scenes, times [B, N] and how many chunks are clean (none)."""
        batch, chunks = self.recipe["batch_independent"], self.recipe["chunks_independent"]
        start = self.choice.randrange(self.recipe["num_chunks"] - chunks + 1)
        clean, scenes = self._clips(batch, start, start + chunks)
        u = torch.rand(batch, chunks, generator=self.generator)
        shift = self.recipe["shift_independent"]
        return clean, scenes, u / (u + shift * (1 - u)), 0

    def staggered(self, count: int) -> tuple[Tensor, list[Scene], Tensor, int]:
        """The same, in a state of the sampler: a random row of a generation of ``count`` steps with window 4."""
        batch, num_chunks, window = self.recipe["batch_staggered"], self.recipe["num_chunks"], 4
        steps, table = count // window, self.tables[count]
        # While the window fills, the layout is decided; afterwards chunks mostly continue the ones before.
        opening = self.choice.random() < self.recipe["opening_share"]
        stage = self.choice.randrange(window) if opening else self.choice.randrange(window, num_chunks + window - 1)
        first, last = max(0, stage - window + 1), min(stage, num_chunks - 1)
        clean, scenes = self._clips(batch, 0, last + 1)
        times = torch.full((batch, last + 1), self.recipe["clean_t"])
        sub_step = torch.rand(batch, generator=self.generator) * steps
        for chunk in range(first, last + 1):
            position = (stage - chunk) * steps + sub_step
            low = position.long()
            times[:, chunk] = torch.lerp(table[low], table[low + 1], position - low)
        return clean, scenes, times, first

    def _clips(self, batch: int, first_chunk: int, end_chunk: int) -> tuple[Tensor, list[Scene]]:
        picks = self.choice.choices(range(len(self.scenes)), self.weights, k=batch)
        return self.latents[picks, :, first_chunk * 6 : end_chunk * 6].float(), [self.scenes[i] for i in picks]

    def captions(
        self, model: TextAndDit, scenes: list[Scene], num_chunks: int, num_clean: int, dropped: Tensor, remaining: int
    ) -> list[CaptionKv]:
        """Keys and values of every chunk's captions for the whole batch; null for clean chunks and dropped samples."""
        dit = model.dit
        length = dit.config.caption_max_length
        text = self.tokenizer(
            [scene.caption for scene in scenes],
            max_length=length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        features = model.t5(**{k: text[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
        mask = text["attention_mask"].bool()
        special = dict(zip(model.special_token_names, model.special_tokens, strict=True))
        null = dit.y_embedder.null_caption_embedding.expand(len(scenes), -1, -1)
        all_captions, all_masks = [], []
        for chunk in range(num_chunks):
            names = [
                f"{DURATION}_{min(remaining - chunk, MAX_DURATION)}" if n == DURATION else n
                for n in DEFAULT_SPECIAL_TOKENS
            ]
            front = torch.stack([special[name] for name in reversed(names)]).expand(len(scenes), -1, -1)
            caption = torch.cat([front, features], dim=1)[:, :length]
            caption_mask = torch.cat([mask.new_ones(len(scenes), len(names)), mask], dim=1)[:, :length]
            without = dropped | (chunk < num_clean)
            all_captions.append(torch.where(without[:, None, None], null, caption))
            all_masks.append(caption_mask | without[:, None])
        joint = dit.caption_kv(torch.cat(all_captions), torch.cat(all_masks))
        keys = [key.chunk(num_chunks) for key in joint.keys]
        values = [value.chunk(num_chunks) for value in joint.values]
        masks = joint.mask.chunk(num_chunks)
        return [CaptionKv(tuple(k[i] for k in keys), tuple(v[i] for v in values), masks[i]) for i in range(num_chunks)]

    def loss(self, staggered: bool) -> Tensor:
        """Mean squared error of the velocity over the chunks that are being denoised."""
        counts = list(self.tables)
        count = self.choice.choice(counts) if len(counts) > 1 else counts[0]
        clean, scenes, times, num_clean = self.staggered(count) if staggered else self.independent()
        batch, num_chunks = times.shape
        noise = torch.randn(clean.shape, generator=self.generator)
        frame_times = times.repeat_interleave(6, dim=1)[:, None, :, None, None]
        noisy = torch.lerp(noise, clean, frame_times)
        # At inference finished chunks are the model's own: a little noise keeps it from trusting every digit.
        history = slice(0, num_clean * 6)
        noisy[:, :, history] = clean[:, :, history] + self.recipe["history_noise"] * noise[:, :, history]
        dropped = torch.rand(batch, generator=self.generator) < self.recipe["caption_dropout"]
        remaining = self.choice.randrange(num_chunks, num_chunks + MAX_DURATION)

        def velocity(model: TextAndDit, dropped: Tensor, count: int) -> Tensor:
            captions = self.captions(model, scenes, num_chunks, num_clean, dropped, remaining)
            members = [Member(chunk, captions[chunk]) for chunk in range(num_chunks)]
            flags = dropped[:, None].expand(-1, num_chunks).clone()
            flags[:, :num_clean] = False
            gates = model.dit.gates(times, flags, step_size_number(count, 1.0))
            with mixed_precision():
                return model.dit(noisy, gates, members).float()

        target = clean - noise
        if self.teacher is not None:
            with torch.no_grad():
                # The teacher's velocity at the count that it was trained for holds for all: it is that of an ODE.
                null = velocity(self.teacher, torch.ones_like(dropped), counts[0])
                guided = null + self.recipe["guidance"] * (velocity(self.teacher, dropped, counts[0]) - null)
            target = torch.where(frame_times < self.recipe["guidance_until"], guided, target)
        return (velocity(self.model, dropped, count) - target)[:, :, num_clean * 6 :].square().mean()


def train_dit(vae: VaeConfig, dit: DitConfig, t5: dict, recipe: dict, directory: Path) -> None:
    """Train and leave ``dit.pt`` in ``directory``. Runs in every worker."""
    num_frames = recipe["num_chunks"] * 6 * vae.patch_length
    latents, scenes = encoded_clips(partial(MagiAutoencoder, vae), num_frames, recipe, directory)
    latents = scaled(latents, directory)
    torch.manual_seed(recipe["seed"])
    model = TextAndDit(dit, T5Config(**t5), recipe["seed"])
    session = TrainingSession(directory, "dit", model, ("dit.videodit_blocks",), recipe)
    batches = Batches(latents, scenes, model, _teacher(model, recipe, directory), recipe, session)
    average = {False: 1.0, True: 1.0}
    while not session.finished:
        staggered = session.optimiser.step_count % 4 != 0
        loss = batches.loss(staggered)
        session.optimiser.step(loss)
        average[staggered] += 0.04 * (loss.item() - average[staggered])
        session.after_step(50, loss_independent=average[False], loss_staggered=average[True])


def _teacher(model: TextAndDit, recipe: dict, directory: Path) -> TextAndDit | None:
    """The weights that training went on from, whose guided velocity is learned; None without guidance."""
    if recipe["guidance"] == 1:
        return None
    teacher = copy.deepcopy(model)
    teacher.load_state_dict(torch.load(directory / "teacher.pt", weights_only=True)["model"])
    return teacher.requires_grad_(False)

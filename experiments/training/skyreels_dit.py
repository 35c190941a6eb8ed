"""Stage 2: the embedded SkyReels-V2's transformer and its UMT5 encoder, trained together on windows as latents.

Of every four windows two have a noise level of its own for each chunk (diffusion forcing), and two are in a state that
the sampler really visits: chunks a few steps apart, before them finished or given ones, after them waiting ones. Of
either kind one is seen by block-causal attention, as the cached methods do, and one by that of upstream's vanilla, in
which every frame sees the whole window.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import SkyReelsV2Transformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from eval.atomic import atomic_path
from eval.scenes import Scene
from experiments.training.captions import build_tokenizer
from experiments.training.clips import draw_weights
from experiments.training.latents import encoded_clips
from experiments.training.session import TrainingSession, is_main
from experiments.training.skyreels_vae import WanAutoencoder
from flowcache.models.skyreels.config import CLEAN, WAITING, Sampling
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.text import NEGATIVE_PROMPT
from flowcache.models.wan.unipc import noise_levels

NO_CAPTION = ("", NEGATIVE_PROMPT)  # what a dropped caption is replaced by; guidance leads away from the second
FRAME_RATES = (16, 24)  # one of each embedding; the clips look the same at both


class TextAndTransformer(nn.Module):
    """What stage 2 trains."""

    def __init__(self, transformer: dict, text: dict) -> None:
        super().__init__()
        self.transformer = SkyReelsV2Transformer3DModel(**transformer)
        self.text_encoder = UMT5EncoderModel(UMT5Config(**text))
        self.network = SkyReelsNetwork(self.transformer)
        initialise(self.transformer)


def initialise(transformer: SkyReelsV2Transformer3DModel) -> None:
    """No velocity and open-but-gentle gates, so that training starts near the identity."""
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    for block in transformer.blocks:
        block.scale_shift_table.data[:, [2, 5]] += 0.5


def standardised(latents: Tensor, directory: Path) -> Tensor:
    """Latents with each channel's mean taken off and a standard deviation of 1 over all channels.

    One deviation for all, so that channels which hardly matter to the decoder stay small. ``latent_statistics.json``
    gets them as AutoencoderKLWan's configuration names them.
    """
    sample = latents[:256].float()
    statistics = torch.stack([sample.mean(dim=(0, 2, 3, 4)), sample.std().expand(sample.shape[1])])
    dist.broadcast(statistics, src=0)
    mean, deviation = statistics
    if is_main():
        with atomic_path(directory / "latent_statistics.json") as temporary:
            temporary.write_text(
                json.dumps({"latents_mean": mean.tolist(), "latents_std": deviation.tolist()}), encoding="utf-8"
            )
    shape = (1, -1, 1, 1, 1)
    return ((latents.float() - mean.view(shape)) / deviation.view(shape)).half()


@dataclass(frozen=True)
class States:
    """Of some states of a window, each float32 [states, chunks]: noise levels, timesteps, and 1 where denoised.

    The first ``num_opening`` are those in which a video's first chunk is denoised, which decides what is to be seen.
    """

    levels: Tensor
    times: Tensor
    denoised: Tensor
    num_opening: int


def visited_states(sampling: Sampling) -> States:
    """Every row of a first window, and of one that begins with the end of the one before."""
    levels, times = noise_levels(sampling.num_steps, sampling.shift)
    level_of = torch.cat([levels, torch.ones(1)])  # of the steps, then of clean chunks, and last of waiting ones
    time_of = torch.tensor([*times, CLEAN, WAITING], dtype=torch.float32)
    parts = []
    for given in (0, sampling.overlap_chunks):
        schedule = sampling.schedule(sampling.base_num_frames, times, given, continues=False)
        chunks = schedule.windows[0].chunks
        step = torch.tensor([[schedule.steps_taken(row, chunk) for chunk in chunks] for row in schedule.rows])
        level, time = level_of[step], time_of[step]
        level[:, :given], time[:, :given] = sampling.addnoise_condition / 1000, sampling.addnoise_condition
        parts.append((level, time, ((step >= 0) & (step < sampling.num_steps)).float()))
    return States(*(torch.cat(same) for same in zip(*parts, strict=True)), num_opening=sampling.num_steps)


class Windows:
    """Noisy windows of one worker, and the loss on them."""

    def __init__(
        self,
        latents: Tensor,
        scenes: list[Scene],
        model: TextAndTransformer,
        sampling: Sampling,
        recipe: dict,
        session: TrainingSession,
    ) -> None:
        self.latents, self.scenes, self.model, self.recipe = latents, scenes, model, recipe
        self.block = sampling.causal_block_size
        self.states = visited_states(sampling)
        self.generator, self.choice = session.generator, session.choice
        self.tokenizer = build_tokenizer(recipe["caption_length"])
        self.weights = draw_weights(scenes, recipe)

    def losses(self) -> dict[bool, Tensor]:
        """Mean squared error of the velocity over the chunks that are being denoised, by whether the states are visited
        ones; each the mean over its windows."""
        kinds = list(product((False, True), (False, True))) * self.recipe["windows_of_each_kind"]
        picks = self.choice.choices(range(len(self.scenes)), self.weights, k=len(kinds))
        features = self.text_features([self.scenes[pick].caption for pick in picks])
        losses: dict[bool, list[Tensor]] = {False: [], True: []}
        for (visited, causal), pick, text in zip(kinds, picks, features.split(1), strict=True):
            state = self.visited() if visited else self.independent()
            losses[visited].append(self.loss(self.latents[pick].float()[None], text, *state, causal))
        return {kind: torch.stack(of_kind).mean() for kind, of_kind in losses.items()}

    def visited(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noise levels, timesteps and what is denoised, each [chunks], in a state that the sampler visits."""
        opening = self.choice.random() < self.recipe["opening_share"]
        row = self.choice.randrange(self.states.num_opening if opening else len(self.states.levels))
        return self.states.levels[row], self.states.times[row], self.states.denoised[row]

    def independent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same, with a level of its own for each chunk."""
        u, shift = torch.rand(self.states.levels.shape[1], generator=self.generator), self.recipe["shift_independent"]
        level = shift * u / (1 + (shift - 1) * u)
        return level, (1000 * level).floor(), torch.ones_like(level)

    def text_features(self, captions: list[str]) -> Tensor:
        """Captions, some dropped, as the text encoder's features [B, L, K], zero beyond their ends."""
        dropped = torch.rand(len(captions), generator=self.generator) < self.recipe["caption_dropout"]
        texts = [self.choice.choice(NO_CAPTION) if drop else text for text, drop in zip(captions, dropped, strict=True)]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        mask = tokens["attention_mask"]
        features = self.model.text_encoder(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return features * mask[..., None]

    def loss(self, clean: Tensor, text: Tensor, level: Tensor, time: Tensor, denoised: Tensor, causal: bool) -> Tensor:
        """Of one window [1, C, f, h, w]; level, time and denoised [chunks], text [1, L, K]."""
        level, time, denoised = (x.repeat_interleave(self.block) for x in (level, time, denoised))
        weight = denoised[:, None, None]
        noise, errors = torch.randn((2, *clean.shape), generator=self.generator)
        # At inference finished and given chunks are the model's own: a little noise keeps it from trusting every digit.
        shown = clean + (1 - weight) * self.recipe["history_noise"] * errors
        noisy = torch.lerp(shown, noise, level[:, None, None])
        network = self.model.network
        velocity = network.joint(
            noisy, time, network.caption(text), self.choice.choice(FRAME_RATES), self.block if causal else None
        )
        return ((velocity - (noise - clean)).square() * weight).mean() / weight.mean()


def train_transformer(
    vae: dict, transformer: dict, text: dict, sampling: Sampling, recipe: dict, directory: Path
) -> None:
    """Train and leave ``dit.pt`` in ``directory``. Runs in every worker."""
    latents, scenes = encoded_clips(partial(WanAutoencoder, **vae), sampling.base_num_frames, recipe, directory)
    latents = standardised(latents, directory)
    torch.manual_seed(recipe["seed"])
    model = TextAndTransformer(transformer, text)
    session = TrainingSession(directory, "dit", model, ("transformer.blocks",), recipe)
    windows = Windows(latents, scenes, model, sampling, recipe, session)
    average = {False: 1.0, True: 1.0}
    while not session.finished:
        losses = windows.losses()
        session.optimiser.step(sum(losses.values()) / 2)
        for visited, loss in losses.items():
            average[visited] += 0.04 * (loss.item() - average[visited])
        session.after_step(50, loss_independent=average[False], loss_visited=average[True])

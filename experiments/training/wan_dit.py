"""Stage 2: the embedded causal Wan's teacher and its UMT5 encoder, trained together on clips as latents.

Teacher forcing: every block of a clip is denoised from a noise level of its own while it attends to the clean blocks
before it, as at inference, all in one pass. Half of the clips are seen through a window with a sink, and there the sink
lies further back than the clip is long: what a video past the window looks like.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UMT5Config, UMT5EncoderModel

from eval.scenes import Scene
from experiments.training.captions import build_tokenizer
from experiments.training.clips import draw_weights
from experiments.training.latents import encoded_clips
from experiments.training.precision import mixed_precision
from experiments.training.session import TrainingSession
from experiments.training.skyreels_dit import NO_CAPTION, initialise, standardised
from experiments.training.skyreels_vae import WanAutoencoder
from flowcache.models.wan.attention import Member, Pack
from flowcache.models.wan.network import WanNetwork


class TextAndWan(nn.Module):
    """What is trained."""

    def __init__(self, transformer: dict, text: dict) -> None:
        super().__init__()
        self.transformer = WanTransformer3DModel(**transformer)
        self.text_encoder = UMT5EncoderModel(UMT5Config(**text))
        self.network = WanNetwork(self.transformer)
        initialise(self.transformer)

    def features(self, tokens: dict[str, Tensor]) -> Tensor:
        """Of captions, [B, L, K], zero beyond their ends."""
        mask = tokens["attention_mask"]
        found = self.text_encoder(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return found * mask[..., None]


@dataclass
class TeacherForcing:
    """A cache through which gradients flow: blocks 0 .. B-1 are clean, and block B+b is b with noise.

    Clean ones may run in a pass before, which then serves all that follow.

    A clean block attends to the clean ones up to itself, one with noise to those before it and to itself; of those
    that a window leaves, the first ``sink`` and the last ``window``, itself counted.

    Attributes:
        num_blocks: B.
        window, sink: in blocks; no window is all.
    """

    num_blocks: int
    window: int | None = None
    sink: int = 0
    _kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def members(self, num_tokens: int, clean: bool = True, noisy: bool = True) -> tuple[Member, ...]:
        """Of a pack of all blocks of either or both kinds, each of so many tokens."""
        first, end = 0 if clean else self.num_blocks, 2 * self.num_blocks if noisy else self.num_blocks
        return tuple(Member(position, num_tokens, 0, position) for position in range(first, end))

    def write(self, layer: int, position: int, key: Tensor, value: Tensor) -> None:
        self._kept[layer, position] = key, value

    def read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        keys, values = zip(*(self._kept[layer, each] for each in self._seen(last)), strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def attend(self, layer: int, query: Tensor, first: int, last: int) -> Tensor:
        return F.scaled_dot_product_attention(query, *self.read(layer, first, last))

    def _seen(self, position: int) -> list[int]:
        block = position % self.num_blocks
        before = range(block)
        if self.window is not None:
            before = [each for each in before if each < self.sink or each > block - self.window + self.sink]
        return [*before, position]


class Clips:
    """Noisy clips of one worker, and the loss on them."""

    def __init__(
        self, latents: Tensor, scenes: list[Scene], model: TextAndWan, recipe: dict, session: TrainingSession
    ) -> None:
        self.latents, self.scenes, self.model, self.recipe = latents, scenes, model, recipe
        self.block = recipe["block_size"]
        self.generator, self.choice = session.generator, session.choice
        self.tokenizer = build_tokenizer(recipe["caption_length"])
        self.weights = draw_weights(scenes, recipe)
        self.rope = model.network.rope_table(recipe["furthest_sink"] + latents.shape[2], *latents.shape[3:])

    def losses(self) -> tuple[Tensor, Tensor]:
        """Mean squared error of the velocity: of the first blocks, and of the others."""
        picks = self.choice.choices(range(len(self.scenes)), self.weights, k=self.recipe["clips_per_process"])
        features = self.text_features([self.scenes[pick].caption for pick in picks])
        found = [
            self.loss(self.latents[pick].float()[None], text, windowed=index % 2 == 1)
            for index, (pick, text) in enumerate(zip(picks, features.split(1), strict=True))
        ]
        first, others = (torch.stack(losses).mean() for losses in zip(*found, strict=True))
        return first, others

    def text_features(self, captions: list[str]) -> Tensor:
        """Captions, some dropped, as features [B, L, K]."""
        dropped = torch.rand(len(captions), generator=self.generator) < self.recipe["caption_dropout"]
        texts = [self.choice.choice(NO_CAPTION) if drop else text for text, drop in zip(captions, dropped, strict=True)]
        return self.model.features(self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt"))

    def levels(self, num_blocks: int) -> Tensor:
        """Noise levels [blocks], each by itself, more of them high."""
        u, shift = torch.rand(num_blocks, generator=self.generator), self.recipe["shift"]
        return shift * u / (1 + (shift - 1) * u)

    def loss(self, clean: Tensor, text: Tensor, windowed: bool) -> tuple[Tensor, Tensor]:
        """Of one clip [1, C, f, h, w], text [1, L, K]: the first block's, and the others' mean."""
        frames, rows, columns = clean.shape[2:]
        num_blocks, network = frames // self.block, self.model.network
        level = self.levels(num_blocks).repeat_interleave(self.block)
        noise, errors = torch.randn((2, *clean.shape), generator=self.generator)
        noisy = torch.lerp(clean, noise, level[:, None, None])
        # At inference the blocks before are the model's own: a little noise keeps it from trusting every digit.
        shown = clean + self.recipe["history_noise"] * torch.rand((), generator=self.generator) * errors
        window, sink = self.recipe["window"] if windowed else (None, 0)
        cache = TeacherForcing(num_blocks, window, sink)
        positions = torch.arange(frames)
        if windowed:  # all but the sink lie further on
            positions[sink * self.block :] += self.choice.randrange(self.recipe["furthest_sink"])
        rope = tuple(table[positions.repeat(2)].flatten(0, 1) for table in self.rope)
        x = network.embed(torch.cat([shown, noisy], dim=2))
        table = network.time_table(torch.cat([torch.zeros_like(level), 1000 * level]))
        pack = Pack(cache.members(x.shape[1] * self.block), rope, cache)
        x = network.blocks(x, table.modulation, network.caption(text), pack)
        velocity = network.head(x[frames:], table.embedding[frames:], rows, columns)
        errors = (velocity - (noise - clean)).square().mean(dim=(0, 1, 3, 4)).unflatten(0, (num_blocks, -1)).mean(dim=1)
        return errors[0], errors[1:].mean()


def train_teacher(vae: dict, transformer: dict, text: dict, recipe: dict, directory: Path) -> None:
    """Train and leave ``dit.pt`` in ``directory``. Runs in every worker."""
    latents, scenes = encoded_clips(partial(WanAutoencoder, **vae), recipe["num_frames"], recipe, directory)
    latents = standardised(latents, directory)
    torch.manual_seed(recipe["seed"])
    model = TextAndWan(transformer, text)
    session = TrainingSession(directory, "dit", model, ("transformer.blocks",), recipe)
    minimise(Clips(latents, scenes, model, recipe, session), session, recipe["first_block_weight"])


class Losses(Protocol):
    def losses(self) -> tuple[Tensor, Tensor]: ...


def minimise(data: Losses, session: TrainingSession, weight: float) -> None:
    """Until the session is finished; the first blocks' loss has ``weight``, and the others' 1."""
    average = [1.0, 1.0]
    while not session.finished:
        with mixed_precision():
            losses = data.losses()
        session.optimiser.step((weight * losses[0] + losses[1]) / (weight + 1))
        average = [mean + 0.04 * (loss.item() - mean) for mean, loss in zip(average, losses, strict=True)]
        session.after_step(50, loss_first_block=average[0], loss_others=average[1])

"""Causal Wan as a whole: text encoder, transformer and VAE, ready to generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from flowcache.method import Method
from flowcache.models.base import noise_source
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.device import usable_device
from flowcache.models.frames import as_floats
from flowcache.models.hub import on_disk
from flowcache.models.inputs import Frames, given_frames, plain
from flowcache.models.wan.blocks import Blocks, pixel_frames
from flowcache.models.wan.checkpoint import empty_transformer, load_transformer, sampling_of
from flowcache.models.wan.checks import check_settings
from flowcache.models.wan.config import NETWORKS, TEMPORAL_FACTOR, Sampling
from flowcache.models.wan.files import RELEASES, locate
from flowcache.models.wan.generation import WanGeneration
from flowcache.models.wan.modules import empty_vae
from flowcache.models.wan.network import WanNetwork
from flowcache.models.wan.pipeline import WanPipeline, type_on
from flowcache.models.wan.prompts import check_prompts, latent_starts
from flowcache.models.wan.text import NEGATIVE_PROMPT
from flowcache.models.wan.window import FrameWindow


class Wan(WanPipeline[WanNetwork, Sampling]):
    """The model; a generation of it holds all state of one video. ``sampling`` is Self-Forcing's by default."""

    settings = Sampling
    network_type = WanNetwork
    transformer_type = WanTransformer3DModel
    switches_prompts = True

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        device: torch.device | str = "cpu",
        text_device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        offload: bool | None = None,
        base: str | Path | None = None,
        lora: str | Path | None = None,
        lora_alpha: float | None = None,
        weights: str | None = None,
    ) -> Wan:
        """Load a published file (Self-Forcing, Causal-Forcing, LongLive, Rolling Forcing), or a folder of diffusers.

        Args:
            checkpoint, base, lora: where the parts lie, on the disk or on the hub (``hf://owner/name/file``), see
                flowcache.models.wan.files.locate. Beside the transformer ``sampling.json`` may hold settings (see
                Sampling); without, they are those of the release that the file's name tells, or Self-Forcing's.
            text_device: where the text encoder runs; by default ``device``.
            dtype: of the transformer; by default bfloat16 on CUDA and float32 elsewhere.
            offload: keep text encoder and VAE in host memory while they are not used. By default on a GPU of under
                64 GiB.
            lora_alpha: an adapter counts by this over its rank; by default by the alpha it holds, else by 1.
            weights: "generator_ema" or "generator"; by default those that the release's own command uses.

        Everything is checked before anything is loaded. Raises CheckpointError saying what is missing or wrong.
        """
        files = locate(*(None if place is None else on_disk(place) for place in (checkpoint, base, lora)))
        device, text_device = usable_device(device), usable_device(text_device or device)
        # Everything is there before minutes of loading begin.
        channels, decoded = empty_transformer(files.transformer).config.in_channels, empty_vae(files.vae).config.z_dim
        if decoded != channels:
            raise CheckpointError(
                f"the transformer {files.transformer} makes latents of {channels} channels and the VAE {files.vae} "
                f"decodes {decoded}: they belong to different checkpoints; give base=<folder of the right Wan 2.1>"
            )
        if not files.text_encoder.exists():
            raise CheckpointError(
                f"no text encoder at {files.text_encoder}; give base=<folder of a downloaded Wan 2.1>, which holds it"
            )
        sampling = sampling_of(files.transformer)
        dtype = dtype or type_on(device)
        transformer = load_transformer(files, device, dtype, weights=weights, lora_alpha=lora_alpha)
        parts = files.vae, files.text_encoder, files.tokenizer
        return cls._loaded(transformer, *parts, sampling, device, text_device, offload)

    @classmethod
    def from_random(
        cls,
        size: str = "1.3B",
        release: str = "self_forcing",
        checkpoint: str | Path | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        num_layers: int | None = None,
    ) -> Wan:
        """A model of random weights, for measuring speed: what it generates means nothing.

        Args:
            size, release, checkpoint: as in ``on_meta``.
            device: where the weights are made; the text encoder is left out, and captions are random features.
            seed: of the weights.
            num_layers: the first so many of the transformer's alone; they are alike.
        """
        return cls._with_random_weights(*_on_meta(size, release, checkpoint), device, seed, num_layers)

    @classmethod
    def on_meta(cls, size: str = "1.3B", release: str = "self_forcing", checkpoint: str | Path | None = None) -> Wan:
        """A model without weights or memory, on device "meta", whose generations count what they would do.

        Args:
            size: of ``flowcache.models.wan.config.NETWORKS``.
            release: of ``flowcache.models.wan.files.RELEASES``, as which it samples.
            checkpoint: whose configuration counts instead of both; no weights are read.
        """
        return cls._on_device_meta(*_on_meta(size, release, checkpoint))

    @property
    def chunk_frames(self) -> int:
        """Pixel frames of one chunk; a video's first has fewer, see ``frames_of``."""
        return self.sampling.block_frames * TEMPORAL_FACTOR

    def frames_of(self, num_chunks: int) -> int:
        """Pixel frames of a video of so many chunks, nothing given."""
        return _frames_of(self.sampling, num_chunks)

    @torch.inference_mode()
    def generation(
        self,
        prompt: str | None,
        num_frames: int,
        method: Method,
        seed: int | torch.Generator,
        prompts: Sequence[tuple[int, str]] | None = None,
        negative_prompt: str = NEGATIVE_PROMPT,
        image: Frames | None = None,
        prefix_video: Frames | None = None,
        **settings: Any,
    ) -> WanGeneration:
        """A fresh generation.

        Args:
            prompt: the caption; must not be empty. What the text encoder's length does not hold is cut off.
            num_frames: frames to generate. They must fill whole chunks; with an image they include it, after a prefix
                video they do not count its frames.
            method: caching method.
            seed: 0 to 2^63 - 1, or a generator on the CPU, of the noise, which is drawn there so that it is the same on
                every device.
            prompts: instead of ``prompt``, see flowcache.generate.
            negative_prompt: what guidance leads away from.
            image: uint8 [H, W, 3], first frame (image-to-video); a chunk by itself.
            prefix_video: uint8 [F, H, W, 3], frames to continue, which fill whole chunks.
            settings: instead of the model's own, under the names of Sampling.

        Frames and numbers may be numpy's. Raises ValueError, before any work, for what cannot be made. Warns where a
        prompt is cut.
        """
        prompt, num_frames, seed = plain(prompt), plain(num_frames), plain(seed)
        texts = check_prompts(prompt, plain(prompts), seed)
        sampling = self.sampling.replaced({name: plain(value) for name, value in settings.items()})
        check_settings(sampling, method, len(texts))
        rows, columns = self._latent_size(sampling)
        frames = given_frames(image, prefix_video, sampling.height, sampling.width)
        if frames is not None and self.vae is None:
            raise ValueError("given frames must be encoded, and this model has no VAE; load it from a checkpoint")
        continues = prefix_video is not None
        given = 0 if frames is None else _given_latents(sampling, len(frames), continues)
        blocks = _blocks(sampling, num_frames, given, continues)
        FrameWindow(sampling, blocks).check_positions(self.network.transformer.rope.max_seq_len)
        starts = latent_starts([start for start, _ in texts], blocks, given, continues)
        shape = (1, self.network.config.in_channels, blocks.num_frames - given, rows, columns)
        random = noise_source(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float32).to(self.device)

        fresh = sampling.most_steps - 1 if sampling.solver == "fresh_noise" else 0
        noise, fresh_noise = draw(*shape), draw(fresh, *shape) if fresh else None
        return WanGeneration(
            self.network,
            sampling,
            method,
            [self._encode(text) for _, text in texts],
            noise,
            fresh_noise,
            None if frames is None else self.vae.encode(as_floats(frames.to(self.device))),
            starts,
            self._encode_negative(negative_prompt) if sampling.guidance_scale > 1 else None,
            self.vae,
            emit_prefix=not continues,
        )


def _on_meta(
    size: str, release: str, checkpoint: str | Path | None
) -> tuple[WanTransformer3DModel, AutoencoderKLWan | None, Sampling]:
    """Transformer and VAE without weights, and settings: a checkpoint's (without the VAE where it has none beside it),
    or those of a released transformer and of a way to sample."""
    if checkpoint is not None:
        files = locate(checkpoint)
        vae = empty_vae(files.vae) if files.vae.exists() else None
        return empty_transformer(files.transformer), vae, sampling_of(files.transformer)
    if size not in NETWORKS:
        raise ValueError(f"size={size!r} is no released Wan 2.1; there are {', '.join(NETWORKS)}")
    if release not in RELEASES:
        raise ValueError(f"release={release!r} is no published causal Wan; there are {', '.join(RELEASES)}")
    with torch.device("meta"):
        return WanTransformer3DModel(**NETWORKS[size]), None, Sampling().replaced(RELEASES[release].settings)


def _frames_of(sampling: Sampling, num_chunks: int) -> int:
    return pixel_frames(Blocks(0, sampling.block_frames, sampling.first_frame_alone).start(num_chunks))


def _given_latents(sampling: Sampling, num_frames: int, continues: bool) -> int:
    """Latent frames of so many given pixel frames. Raises ValueError where they do not fill whole chunks."""
    latents, over = divmod(num_frames - 1 + TEMPORAL_FACTOR, TEMPORAL_FACTOR)
    try:
        Blocks(latents, sampling.block_frames, sampling.first_frame_alone).chunks_of(latents)
        fills = not over
    except ValueError:
        fills = False
    if fills:
        return latents
    if not continues:
        raise ValueError(
            f"an image is one latent frame, which does not fill a chunk of {sampling.block_frames}; choose "
            f"first_frame_alone=true, if the weights are made for it, or give {_frames_of(sampling, 1)} frames as "
            "prefix_video"
        )
    per_chunk = sampling.block_frames * TEMPORAL_FACTOR
    nearest = _frames_of(sampling, max(1, round((num_frames + per_chunk - _frames_of(sampling, 1)) / per_chunk)))
    raise ValueError(
        f"a prefix video of {num_frames} frames does not fill whole chunks; give {nearest}, or another number of which "
        f"{per_chunk} are a chunk"
    )


def _blocks(sampling: Sampling, num_frames: int, given: int, continues: bool) -> Blocks:
    """The chunks of a video of so many pixel frames. Raises ValueError where they do not fill whole ones."""
    size, alone = sampling.block_frames, sampling.first_frame_alone
    per_chunk, whole = size * TEMPORAL_FACTOR, isinstance(num_frames, int) and num_frames > 0
    if continues:
        fills, latents = whole and num_frames % per_chunk == 0, given + (num_frames if whole else 0) // TEMPORAL_FACTOR
        nearest = max(1, round(num_frames / per_chunk)) * per_chunk
    else:
        least = Blocks(given, size, alone).chunks_of(given) + 1
        first = _frames_of(sampling, 1)
        nearest = _frames_of(sampling, max(least, round((num_frames - first) / per_chunk) + 1))
        fills, latents = whole and num_frames == nearest, (nearest - 1) // TEMPORAL_FACTOR + 1
    if not fills:
        raise ValueError(
            f"num_frames={num_frames} {'more ' if continues else ''}does not fill whole chunks of {size} latent frames"
            f"{' after a first one alone' if alone and not continues else ''}; try num_frames={nearest}"
        )
    return Blocks(latents, size, alone)

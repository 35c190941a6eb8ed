"""SkyReels-V2 as a whole: text encoder, transformer and VAE, ready to generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel
from torch import Tensor

from flowcache.method import Method
from flowcache.models.base import check_request, noise_source
from flowcache.models.checkpoint import CheckpointError, read_headers
from flowcache.models.device import usable_device
from flowcache.models.frames import as_floats
from flowcache.models.hub import on_disk
from flowcache.models.inputs import Frames, given_frames, plain
from flowcache.models.skyreels.checkpoint import empty_transformer, load_transformer, read_sampling
from flowcache.models.skyreels.config import NETWORKS, Sampling
from flowcache.models.skyreels.generation import SkyReelsGeneration
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.config import TEMPORAL_FACTOR
from flowcache.models.wan.modules import empty_vae
from flowcache.models.wan.pipeline import WanPipeline, type_on
from flowcache.models.wan.text import NEGATIVE_PROMPT
from flowcache.models.wan.unipc import noise_levels
from flowcache.models.wan.vae import FrameStream


class SkyReels(WanPipeline[SkyReelsNetwork, Sampling]):
    """The model; a generation of it holds all state of one video. ``sampling`` is the paper's where none is given."""

    settings = Sampling
    network_type = SkyReelsNetwork
    transformer_type = SkyReelsV2Transformer3DModel
    switches_prompts = False

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        text_device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        offload: bool | None = None,
    ) -> SkyReels:
        """Load a checkpoint in diffusers' layout, such as SkyReels-V2-DF-1.3B-540P-Diffusers, or one by its name on the
        hub (``hf://owner/name``).

        It holds the folders transformer, vae, text_encoder and tokenizer, and may hold ``sampling.json`` with settings
        that differ from the paper's (see Sampling). The transformer may be under the original names.

        Args:
            text_device: where the text encoder runs; by default ``device``.
            dtype: of the transformer; by default bfloat16 on CUDA, as upstream, and float32 elsewhere.
            offload: keep text encoder and VAE in host memory while they are not used. By default on a GPU of under
                64 GiB.

        Everything is checked before anything is loaded. Raises CheckpointError saying what is missing or wrong.
        """
        directory = on_disk(directory)
        if not directory.is_dir():
            raise CheckpointError(f"no checkpoint directory at {directory}; give the path of a downloaded checkpoint")
        device, text_device = usable_device(device), usable_device(text_device or device)
        if not (directory / "transformer").is_dir() and (directory / "config.json").is_file():
            raise CheckpointError(
                f"{directory} is laid out like the original release; convert its transformer with `python -m "
                f"flowcache.models.skyreels.checkpoint {directory} <destination>`, and put the folders vae, "
                "text_encoder and tokenizer of any SkyReels-V2 checkpoint for diffusers beside it"
            )
        for part in ("transformer", "vae", "text_encoder"):  # everything is there before minutes of loading begin
            read_headers(directory / part)
        sampling = read_sampling(directory)
        channels = empty_transformer(directory / "transformer")[0].config.in_channels
        decoded = empty_vae(directory / "vae").config.z_dim
        if decoded != channels:
            raise CheckpointError(
                f"the transformer in {directory} makes latents of {channels} channels and the VAE decodes {decoded}: "
                "they belong to different checkpoints; download both of one"
            )
        transformer = load_transformer(directory / "transformer", device, dtype or type_on(device))
        parts = (directory / part for part in ("vae", "text_encoder", "tokenizer"))
        return cls._loaded(transformer, *parts, sampling, device, text_device, offload)

    @classmethod
    def from_random(
        cls,
        size: str = "1.3B",
        checkpoint: str | Path | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        num_layers: int | None = None,
    ) -> SkyReels:
        """A model of random weights, for measuring speed: what it generates means nothing.

        Args:
            size, checkpoint: as in ``on_meta``.
            device: where the weights are made; the text encoder is left out, and captions are random features.
            seed: of the weights.
            num_layers: the first so many of the transformer's alone; they are alike.
        """
        return cls._with_random_weights(*_on_meta(size, checkpoint), device, seed, num_layers)

    @classmethod
    def on_meta(cls, size: str = "1.3B", checkpoint: str | Path | None = None) -> SkyReels:
        """A model without weights or memory, on device "meta", whose generations count what they would do.

        Args:
            size: of ``flowcache.models.skyreels.config.NETWORKS``; it samples as in the FlowCache paper.
            checkpoint: a checkpoint directory whose configuration counts instead of ``size``; no weights are read.
        """
        return cls._on_device_meta(*_on_meta(size, checkpoint))

    @property
    def chunk_frames(self) -> int:
        """Pixel frames of one chunk; a window's first has fewer, see ``frames_of``."""
        return self.sampling.causal_block_size * TEMPORAL_FACTOR

    def frames_of(self, num_chunks: int) -> int:
        """Pixel frames of a video of so many chunks, nothing given."""
        return self.sampling.frames_of(num_chunks)

    @torch.inference_mode()
    def generation(
        self,
        prompt: str | None,
        num_frames: int,
        method: Method,
        seed: int | torch.Generator,
        negative_prompt: str = NEGATIVE_PROMPT,
        image: Frames | None = None,
        prefix_video: Frames | None = None,
        **settings: Any,
    ) -> SkyReelsGeneration:
        """A fresh generation.

        Args:
            prompt: the caption; must not be empty. What the text encoder's length does not hold is cut off.
            num_frames: frames to generate. They must fill whole chunks; with an image they include it, after a prefix
                video they do not count its frames.
            method: caching method.
            seed: 0 to 2^63 - 1, or a generator on the CPU, of the noise, which is drawn there so that it is the same on
                every device.
            negative_prompt: what guidance leads away from.
            image: uint8 [H, W, 3], first frame (image-to-video). Upstream drops it where chunks are longer than one
                latent frame; here the first chunk is denoised around it.
            prefix_video: uint8 [F, H, W, 3], frames to continue, of which the last ``overlap_history`` are looked at.
            settings: instead of the model's own, under the names of Sampling.

        Frames and numbers may be numpy's. Raises ValueError, before any work, for what cannot be made. Warns where a
        prompt is cut.
        """
        prompt, num_frames, seed = plain(prompt), plain(num_frames), plain(seed)
        check_request(prompt, seed)
        sampling = self.sampling.replaced({name: plain(value) for name, value in settings.items()})
        rows, columns = self._latent_size(sampling)
        frames = self._given_frames(image, prefix_video, sampling)
        continues = prefix_video is not None
        given_latents = 0 if frames is None else (frames.shape[2] - 1) // TEMPORAL_FACTOR + 1
        prefix_chunks = given_latents // sampling.causal_block_size
        times = noise_levels(sampling.num_steps, sampling.shift)[1]
        schedule = sampling.schedule(num_frames, times, prefix_chunks, continues)
        channels, block = self.network.config.in_channels, sampling.causal_block_size
        random = noise_source(seed)

        def draw(num_latents: int) -> Tensor | None:
            shape = (1, channels, num_latents, rows, columns)
            return torch.randn(shape, generator=random, dtype=torch.float32).to(self.device) if num_latents else None

        noise = [draw(window.num_chunks * block) for window in schedule.windows]
        condition_noise = [draw(given_latents), *(draw(w.prefix_chunks * block) for w in schedule.windows[1:])]
        captions = [self._encode(prompt)]
        if sampling.guidance_scale > 1:
            captions.append(self._encode_negative(negative_prompt))
        given = None if frames is None else self.vae.encode(frames)
        video = None
        if self.vae is not None and self.device.type != "meta":  # where there is nothing to decode
            video = FrameStream(self.vae, sampling.overlap_history, frames if continues else None)
        return SkyReelsGeneration(
            self.network,
            sampling,
            schedule,
            method,
            captions,
            noise,
            given,
            condition_noise,
            video,
            emit_given_frames=image is not None,
        )

    def _given_frames(self, image: Frames | None, prefix_video: Frames | None, sampling: Sampling) -> Tensor | None:
        """What the first window begins with: float32 [1, 3, F, H, W] in [-1, 1]."""
        frames = given_frames(image, prefix_video, sampling.height, sampling.width)
        if frames is None:
            return None
        if self.vae is None:
            raise ValueError("given frames must be encoded, and this model has no VAE; load it from a checkpoint")
        if prefix_video is not None:
            if len(frames) < sampling.overlap_history:
                raise ValueError(
                    f"a prefix video of {len(frames)} frames is too short: {sampling.overlap_history} are looked at; "
                    "give more, or lower overlap_history"
                )
            frames = frames[-sampling.overlap_history :]
        return as_floats(frames.to(self.device))


def _on_meta(
    size: str, checkpoint: str | Path | None
) -> tuple[SkyReelsV2Transformer3DModel, AutoencoderKLWan | None, Sampling | None]:
    """Transformer and VAE without weights: a checkpoint's and its settings, or a released transformer alone."""
    if checkpoint is not None:
        folder = Path(checkpoint)
        return empty_transformer(folder / "transformer")[0], empty_vae(folder / "vae"), read_sampling(folder)
    if size not in NETWORKS:
        raise ValueError(f"size={size!r} is no released SkyReels-V2; there are {', '.join(NETWORKS)}")
    with torch.device("meta"):
        return SkyReelsV2Transformer3DModel(**NETWORKS[size]), None, None

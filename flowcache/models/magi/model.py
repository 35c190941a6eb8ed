"""MAGI-1 as a whole: text encoder, transformer and VAE, ready to generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from warnings import warn

import torch
from torch import Tensor

from flowcache.kernels import AUTO, one_layer, set_kernels
from flowcache.method import Method
from flowcache.models.base import check_request, noise_source
from flowcache.models.checkpoint import CheckpointError, check_weights, load_weights, weights_bytes
from flowcache.models.device import usable_device
from flowcache.models.frames import as_floats, as_uint8
from flowcache.models.hub import on_disk
from flowcache.models.inputs import Frames, given_frames, plain
from flowcache.models.magi.attention import CaptionKv
from flowcache.models.magi.checkpoint import locate, read_vae_config
from flowcache.models.magi.config import NETWORKS, TEMPORAL_FACTOR, MagiConfig, Runtime
from flowcache.models.magi.generation import MagiGeneration
from flowcache.models.magi.network import MagiDit
from flowcache.models.magi.text import (
    DEFAULT_SPECIAL_TOKENS,
    BlankText,
    TextEncoder,
    chunk_captions,
    load_special_tokens,
    null_mask,
)
from flowcache.models.magi.vae import MagiVae, Tiling, VaeConfig
from flowcache.models.offload import Visits, is_short
from flowcache.models.random_weights import fill_random
from flowcache.models.shapes import shapes_of
from flowcache.options import either
from flowcache.parallel import Parallel

SPATIAL_FACTOR = 8  # pixels a latent row, of the released VAE


class Magi:
    """The model; a generation of it holds all state of one video.

    Args:
        config: network and sampling settings.
        dit, vae, text_encoder: on ``device``. Without a VAE a generation makes latents only.
        special_tokens: vectors by name, see flowcache.models.magi.text.
        special_token_names: which of them go in front of captions, in order of application.
    """

    switches_prompts = False

    def __init__(
        self,
        config: MagiConfig,
        dit: MagiDit,
        vae: MagiVae | None,
        text_encoder: TextEncoder | BlankText,
        special_tokens: dict[str, Tensor],
        special_token_names: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.dit, self.vae, self.text_encoder = config, dit, vae, text_encoder
        self.special_tokens, self.special_token_names = special_tokens, tuple(special_token_names)
        self.device = torch.device(device)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        text_device: torch.device | str | None = None,
        offload: bool | None = None,
    ) -> Magi:
        """Load a checkpoint directory, or one by its name on the hub (``hf://owner/name/folder``).

        It holds the transformer under ``inference_weight.distill`` or ``inference_weight`` (as downloaded) and
        ``config.json`` (the official JSON of the checkpoint; the released networks do without), and in it or around it
        lie ``vae``, ``t5`` and ``special_tokens.npz`` (example/assets of the official repository), see ``locate``.
        Everything is checked before anything is loaded. Raises CheckpointError, FileNotFoundError or ValueError saying
        what is missing or wrong.

        Args:
            text_device: where the text encoder runs; by default ``device``.
            offload: keep text encoder and VAE in host memory while they are not used. By default on a GPU of under
                64 GiB.
        """
        directory = on_disk(directory)
        if not directory.is_dir():
            raise CheckpointError(f"no checkpoint directory at {directory}; give the path of a downloaded checkpoint")
        device, text_device = usable_device(device), usable_device(text_device or device)
        files = locate(directory)
        config, vae_config = files.config, read_vae_config(files.vae)
        if vae_config.z_chans != config.dit.latent_channels:
            raise CheckpointError(
                f"the transformer in {directory} makes latents of {config.dit.latent_channels} channels and the VAE "
                f"decodes {vae_config.z_chans}: they belong to different checkpoints; download both of one"
            )
        with torch.device("meta"):
            dit, vae = MagiDit(config.dit), MagiVae(vae_config).to(_vae_type(device))
        check_weights(dit, files.weights)
        check_weights(vae, files.vae)
        channels = config.dit.caption_channels
        tokens = load_special_tokens(files.special_tokens, channels)
        offload = is_short(device) if offload is None else offload
        text = TextEncoder.from_pretrained(
            files.t5, config.dit.caption_max_length, text_device, channels=channels, offload=offload
        )
        load_weights(dit, files.weights, device)
        load_weights(vae, files.vae, "cpu" if offload else device)
        if offload:
            vae.presence = Visits(vae, device)
        return cls(config, dit, vae, text, tokens, device=device)

    @classmethod
    def from_random(
        cls,
        size: str = "4.5B",
        caption_tokens: int = 100,
        checkpoint: str | Path | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        num_layers: int | None = None,
    ) -> Magi:
        """A model of random weights, for measuring speed: what it generates means nothing.

        Args:
            size, caption_tokens, checkpoint: as in ``on_meta``.
            device: where the weights are made; the text encoder is left out, and captions are random features.
            seed: of the weights.
            num_layers: the first so many of the transformer's alone; they are alike.
        """
        device, seed = usable_device(device), plain(seed)
        config, vae_config = _configurations(size, checkpoint)
        if num_layers is not None:
            config = replace(config, dit=replace(config.dit, num_layers=num_layers))
        with torch.device("meta"):
            dit, vae = MagiDit(config.dit), MagiVae(vae_config or VaeConfig()).to(_vae_type(device))
        for module in (dit, vae):
            fill_random(module, device, seed)
        text = BlankText(caption_tokens, config.dit.caption_max_length, config.dit.caption_channels, device)
        return cls(config, dit, vae, text, text.special_tokens, device=device)

    @classmethod
    def on_meta(cls, size: str = "4.5B", caption_tokens: int = 100, checkpoint: str | Path | None = None) -> Magi:
        """A model without weights or memory, on device "meta", whose generations count what they would do.

        Args:
            size: of ``flowcache.models.magi.config.NETWORKS``; it samples as in the FlowCache paper (see Runtime).
            caption_tokens: that a prompt is taken to have, since nothing encodes it; special tokens come on top.
            checkpoint: a checkpoint directory whose configuration counts instead of ``size``; no weights are read.
        """
        config, vae_config = _configurations(size, checkpoint)
        with torch.device("meta"):
            dit = MagiDit(config.dit).eval().requires_grad_(False)
            vae = None if vae_config is None else MagiVae(vae_config)
        text = BlankText(caption_tokens, config.dit.caption_max_length, config.dit.caption_channels)
        return cls(config, dit, vae, text, text.special_tokens, device="meta")

    def set_kernels(self, attention_backend: str = AUTO, compiled: bool = False) -> None:
        """See flowcache.kernels.set_kernels."""
        set_kernels(self.dit, attention_backend, compiled)

    def set_parallel(self, parallel: Parallel) -> None:
        """What this process computes of every generation from now on, see flowcache.parallel."""
        self.dit.parallel = parallel

    def one_layer(self) -> AbstractContextManager[None]:
        """See flowcache.kernels.one_layer."""
        return one_layer(self.dit)

    @property
    def weights_bytes(self) -> dict[str, int]:
        """Of every network, by its name."""
        text = getattr(self.text_encoder, "encoder", None)
        return weights_bytes({"transformer": self.dit, "VAE": self.vae, "text encoder": text})

    def decoder_on_meta(self, height: int, width: int) -> Callable[[], Tensor] | None:
        """See flowcache.models.base.VideoModel."""
        if self.vae is None:
            return None
        config, runtime, size = self.vae.config, self.config.runtime, self._latent_size(height, width)
        latent = torch.empty(1, config.z_chans, runtime.chunk_width, *size, device="meta", dtype=torch.float32)
        vae, tiling = shapes_of(self.vae), Tiling(frames=runtime.fps // 2)
        return lambda: as_uint8(vae.tiled_decode(latent, tiling))

    @property
    def chunk_frames(self) -> int:
        """Pixel frames of one chunk."""
        return self.config.runtime.chunk_width * TEMPORAL_FACTOR

    def frames_of(self, num_chunks: int) -> int:
        """Pixel frames of a video of so many chunks."""
        return num_chunks * self.chunk_frames

    @torch.inference_mode()
    def generation(
        self,
        prompt: str | None,
        num_frames: int,
        method: Method,
        seed: int | torch.Generator,
        num_steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        cfg_number: int | None = None,
        shift: float | None = None,
        image: Frames | None = None,
        prefix_video: Frames | None = None,
        noise2clean_kvrange: Sequence[int] | None = None,
        clean_chunk_kvrange: int | None = None,
    ) -> MagiGeneration:
        """A fresh generation.

        Args:
            prompt: the caption; must not be empty. What the text encoder's length does not hold is cut off.
            num_frames: frames to generate. Together with a prefix video's they must fill whole chunks of 24; with an
                image they include the four frames that show it.
            method: caching method.
            seed: 0 to 2^63 - 1, or a generator on the CPU, of the noise, which is drawn there so that it is the same on
                every device.
            num_steps, height, width, cfg_number, shift: instead of the configuration's.
            image: uint8 [H, W, 3], first frame (image-to-video).
            prefix_video: uint8 [F, H, W, 3], frames to continue; F a multiple of 4.
            noise2clean_kvrange, clean_chunk_kvrange: how far back chunks see, see Runtime; instead of the
                configuration's.

        Frames and numbers may be numpy's. Raises ValueError, before any work, for what cannot be made. Warns where the
        weights were not made for ``num_steps`` or ``cfg_number``, and where the prompt is cut.
        """
        prompt, num_frames, seed = plain(prompt), plain(num_frames), plain(seed)
        given = {"num_steps": num_steps, "video_size_h": height, "video_size_w": width}
        given |= {"cfg_number": cfg_number, "shift": shift, "clean_chunk_kvrange": clean_chunk_kvrange}
        given = {name: plain(value) for name, value in given.items() if value is not None}
        if noise2clean_kvrange is not None:
            ranges = plain(noise2clean_kvrange)
            given["noise2clean_kvrange"] = tuple(ranges) if isinstance(ranges, Sequence) else ranges
        check_request(prompt, seed)
        runtime = replace(self.config.runtime, **given)
        size = self._latent_size(runtime.video_size_h, runtime.video_size_w)
        frames = given_frames(image, prefix_video, runtime.video_size_h, runtime.video_size_w)
        num_chunks = self._num_chunks(num_frames, None if prefix_video is None else len(frames))
        if image is not None and runtime.chunk_width == 1:  # a chunk that is given whole is not emitted
            raise ValueError("an image fills a whole chunk where chunk_width=1; repeat it four times as prefix_video")
        self._warn_of_untrained(runtime)
        prefix = None if frames is None else self._encode_prefix(frames)
        shape = (1, self.dit.config.latent_channels, num_chunks * runtime.chunk_width, *size)
        random = noise_source(seed)
        noise = torch.randn(shape, generator=random, dtype=torch.float32).to(self.device)
        prefix_chunks = 0 if prefix is None else prefix.shape[2] // runtime.chunk_width
        captions, null = self._captions(prompt, num_chunks, prefix_chunks)
        return MagiGeneration(
            self.dit, runtime, method, captions, null, noise, prefix, keep_prefix_frames=image is not None, vae=self.vae
        )

    def _captions(self, prompt: str, num_chunks: int, prefix_chunks: int) -> tuple[list[CaptionKv], CaptionKv]:
        """Every chunk's caption (prefix chunks: the null caption) and the null caption."""
        features, mask = self.text_encoder(prompt, len(self.special_token_names))
        tokens, masks = chunk_captions(
            features, mask, self.special_tokens, num_chunks - prefix_chunks, self.special_token_names
        )
        table = self.dit.y_embedder.null_caption_embedding
        null = self.dit.caption_kv(table[null_mask(len(table)).bool()][None])
        own = [
            self.dit.caption_kv(caption[kept.bool()][None].to(self.device))
            for caption, kept in zip(tokens, masks, strict=True)
        ]
        return [null] * prefix_chunks + own, null

    def _warn_of_untrained(self, runtime: Runtime) -> None:
        """Say what the weights were not made for."""
        counts, distilled = runtime.trained_num_steps, self.dit.config.distill
        if counts and runtime.num_steps not in counts:
            warn(
                f"these weights were trained for num_steps={either(counts)}, and num_steps="
                f"{runtime.num_steps} may show nothing: the number is an input of the network",
                stacklevel=1,
            )
        if distilled != (runtime.cfg_number == 1):
            held = "hold their guidance already, and three passes add another one" if distilled else "hold no guidance"
            warn(
                f"cfg_number={runtime.cfg_number} does not belong to {'distilled' if distilled else 'base'} weights, "
                f"which {held}; choose cfg_number={1 if distilled else 3}",
                stacklevel=1,
            )

    def _encode_prefix(self, frames: Tensor) -> Tensor:
        if self.vae is None:
            raise ValueError("given frames must be encoded, and this model has no VAE; load it from a checkpoint")
        tiling = Tiling(frames=self.config.runtime.fps // 2)
        return self.vae.tiled_encode(as_floats(frames.to(self.device)), tiling) * self.config.runtime.scale_factor

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        factor = SPATIAL_FACTOR if self.vae is None else self.vae.config.patch_size
        unit = factor * self.dit.config.patch_size
        if min(height, width) < unit or height % unit or width % unit:
            raise ValueError(f"{height} x {width} pixels cannot be split into patches; use multiples of {unit}")
        return height // factor, width // factor

    def _num_chunks(self, num_frames: int, num_given: int | None) -> int:
        """Of a video, or of one that goes on after given frames. Raises ValueError naming counts that can be made."""
        chunk, fitting = self.chunk_frames, 0
        if num_given is not None:
            fitting = max(1, num_given // TEMPORAL_FACTOR) * TEMPORAL_FACTOR
        nearest = max(chunk - fitting % chunk, round((num_frames + fitting) / chunk) * chunk - fitting)
        if num_given not in (None, fitting):
            alone = ", or a single frame as image" if num_given == 1 else ""
            raise ValueError(
                f"a prefix video of {num_given} frames does not fill whole latent frames of {TEMPORAL_FACTOR}; try "
                f"{fitting} frames and num_frames={nearest}{alone}"
            )
        if not isinstance(num_frames, int) or num_frames < 1 or (num_frames + fitting) % chunk:
            after = f" after {fitting} given ones" if fitting else ""
            raise ValueError(
                f"num_frames={num_frames}{after} does not fill whole chunks of {chunk} frames; try num_frames={nearest}"
            )
        return (num_frames + fitting) // chunk


def _vae_type(device: torch.device) -> torch.dtype:
    """As the official code runs it (inference/pipeline/video_process.py); float32 where a device is not made for it."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _configurations(size: str, checkpoint: str | Path | None) -> tuple[MagiConfig, VaeConfig | None]:
    """Of a checkpoint directory, or a released network's, which samples as in the FlowCache paper (see Runtime)."""
    if checkpoint is not None:
        files = locate(Path(checkpoint))
        return files.config, read_vae_config(files.vae)
    if size not in NETWORKS:
        raise ValueError(f"size={size!r} is no released MAGI-1; there are {', '.join(NETWORKS)}")
    return MagiConfig(NETWORKS[size]), None

"""What every model of Wan's family is made of: text encoder, transformer and VAE, and what asks nothing else of it.

Shape letters: L caption tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, ModelMixin
from torch import Tensor

from flowcache.kernels import AUTO, one_layer, set_kernels
from flowcache.models.checkpoint import CheckpointError, weights_bytes
from flowcache.models.device import usable_device
from flowcache.models.frames import as_uint8
from flowcache.models.inputs import plain
from flowcache.models.offload import Visits, is_short
from flowcache.models.random_weights import fill_random
from flowcache.models.shapes import shapes_of
from flowcache.models.wan.config import TEMPORAL_FACTOR
from flowcache.models.wan.modules import fill_rope, load_vae, set_dtypes
from flowcache.models.wan.network import WanNetwork
from flowcache.models.wan.text import MAX_TOKENS, TextEncoder
from flowcache.models.wan.vae import WanVae
from flowcache.parallel import Parallel

SPATIAL_FACTOR = 8  # pixels a latent row, of the released VAE


class PixelSize(Protocol):
    """Settings that say how large a frame is, in pixels."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


Network = TypeVar("Network", bound=WanNetwork)
Sampling = TypeVar("Sampling", bound=PixelSize)


class WanPipeline(Generic[Network, Sampling]):
    """Of which a generation holds all state of one video.

    Args:
        network, vae, text_encoder: on ``device``. Without a VAE a generation makes latents only; without a text encoder
            captions are noise, and nothing but a shape on device "meta".
        sampling: settings that ``generation`` starts from; by default those of ``settings``.
    """

    settings: ClassVar[type]  # of which ``sampling`` is one
    network_type: ClassVar[type[WanNetwork]]
    transformer_type: ClassVar[type[ModelMixin]]

    def __init__(
        self,
        network: Network,
        vae: WanVae | None,
        text_encoder: TextEncoder | None,
        sampling: Sampling | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network, self.vae, self.text_encoder = network, vae, text_encoder
        self.sampling = self.settings() if sampling is None else sampling
        self.device = torch.device(device)
        self._features: dict[str, Tensor] = {}  # of negative prompts, which hardly ever change

    @classmethod
    def from_pipe(cls, pipe: DiffusionPipeline, **settings: Any) -> Self:
        """The model of a loaded pipeline of diffusers, over the same weights, on its device.

        The transformer is shared. The VAE is too where it is float32 on a GPU; otherwise a copy is made, since the
        suite runs it in float32 and exchanges slow layers on CPUs.

        Args:
            settings: of ``sampling``, instead of its defaults; ``shift`` is otherwise that of the pipeline's scheduler.

        Raises ValueError for a pipeline of other parts, and for an unknown setting.
        """
        wanted = {"transformer": cls.transformer_type, "vae": AutoencoderKLWan}
        for name, kind in wanted.items():
            part = getattr(pipe, name, None)
            if not isinstance(part, kind):
                raise ValueError(
                    f"{cls.__name__} needs a pipeline with {name} of {kind.__name__}, and that of "
                    f"{type(pipe).__name__} is {type(part).__name__}"
                )
        if pipe.transformer.config.in_channels != pipe.vae.config.z_dim:
            raise ValueError(
                f"the pipeline's transformer takes {pipe.transformer.config.in_channels} channels and its VAE makes "
                f"{pipe.vae.config.z_dim}: an image goes in beside the latent, which {cls.__name__} does not do"
            )
        device = pipe.transformer.device
        if hasattr(pipe.transformer, "_hf_hook") or device.type == "meta":
            raise ValueError(
                "the pipeline moves its parts in and out by itself (enable_model_cpu_offload), and here they must "
                "stay; take it before that is enabled, on its device: pipe.to(...)"
            )
        shift = getattr(pipe.scheduler.config, "flow_shift", None) or getattr(pipe.scheduler.config, "shift", None)
        sampling = cls.settings().replaced({"shift": shift, **settings})
        vae = pipe.vae
        if vae.dtype != torch.float32 or vae.device.type == "cpu":
            vae = deepcopy(vae).float()
        text = None
        if pipe.text_encoder is not None and pipe.tokenizer is not None:
            text = TextEncoder(pipe.text_encoder, pipe.tokenizer, device=pipe.text_encoder.device)
        transformer = pipe.transformer.eval().requires_grad_(False)
        return cls(cls.network_type(transformer), WanVae(vae.eval().requires_grad_(False)), text, sampling, device)

    @classmethod
    def _loaded(
        cls,
        transformer: ModelMixin,
        vae: Path,
        text_encoder: Path,
        tokenizer: Path,
        sampling: Sampling,
        device: torch.device,
        text_device: torch.device,
        offload: bool | None,
    ) -> Self:
        """Of a loaded transformer and where the other parts lie. Raises CheckpointError for a VAE or text encoder that
        is wrong."""
        offload = is_short(device) if offload is None else offload
        loaded = load_vae(vae, "cpu" if offload else device)
        try:
            decodes = WanVae(loaded, Visits(loaded, device) if offload else None)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{vae} is not Wan 2.1's VAE ({error}); download it again") from error
        reads = TextEncoder.from_pretrained(
            text_encoder,
            tokenizer,
            device=text_device,
            dtype=type_on(text_device),
            channels=transformer.config.text_dim,
            offload=offload,
        )
        return cls(cls.network_type(transformer), decodes, reads, sampling, device)

    @classmethod
    def _with_random_weights(
        cls,
        transformer: ModelMixin,
        vae: AutoencoderKLWan | None,
        sampling: Sampling,
        device: torch.device | str,
        seed: int,
        num_layers: int | None = None,
    ) -> Self:
        """Of a transformer and a VAE on device "meta", by default the released one; without a text encoder."""
        device, seed = usable_device(device), plain(seed)
        if num_layers is not None:
            transformer.blocks = transformer.blocks[:num_layers]
            transformer.register_to_config(num_layers=num_layers)
        if vae is None:
            with torch.device("meta"):
                vae = AutoencoderKLWan().float()  # its defaults are the released one's
        set_dtypes(transformer, type_on(device))
        for module in (transformer, vae):
            fill_random(module, device, seed)
        fill_rope(transformer)
        transformer.rope.to(device)
        return cls(cls.network_type(transformer), WanVae(vae), None, sampling, device)

    @classmethod
    def _on_device_meta(cls, transformer: ModelMixin, vae: AutoencoderKLWan | None, sampling: Sampling) -> Self:
        """Of a transformer and a VAE that are there, for counting."""
        set_dtypes(transformer, torch.bfloat16)
        network = cls.network_type(transformer.eval().requires_grad_(False))
        return cls(network, None if vae is None else WanVae(vae), None, sampling, "meta")

    def set_kernels(self, attention_backend: str = AUTO, compiled: bool = False) -> None:
        """See flowcache.kernels.set_kernels."""
        set_kernels(self.network, attention_backend, compiled)

    def set_parallel(self, parallel: Parallel) -> None:
        """What this process computes of every generation from now on, see flowcache.parallel."""
        self.network.parallel = parallel

    def one_layer(self) -> AbstractContextManager[None]:
        """See flowcache.kernels.one_layer."""
        return one_layer(self.network)

    @property
    def weights_bytes(self) -> dict[str, int]:
        """Of every network, by its name."""
        vae = None if self.vae is None else self.vae.vae
        text = None if self.text_encoder is None else self.text_encoder.encoder
        return weights_bytes({"transformer": self.network.transformer, "VAE": vae, "text encoder": text})

    def decoder_on_meta(self, height: int, width: int) -> Callable[[], Tensor] | None:
        """See flowcache.models.base.VideoModel."""
        if self.vae is None:
            return None
        rows, columns = height // self.vae.spatial_factor, width // self.vae.spatial_factor
        channels, frames = self.vae.vae.config.z_dim, self.chunk_frames // TEMPORAL_FACTOR
        latent = torch.empty(1, channels, frames, rows, columns, device="meta", dtype=torch.float32)
        decode = WanVae(shapes_of(self.vae.vae)).decoder()
        return lambda: as_uint8(decode(latent))

    def _encode(self, prompt: str, name: str = "prompt") -> Tensor:
        """Prompt -> features float32 [1, L, text channels]; ``name`` is what it was given as."""
        if self.text_encoder is None:
            shape = (1, MAX_TOKENS, self.network.config.text_dim)
            if self.device.type == "meta":
                return torch.empty(shape, device="meta", dtype=torch.float32)
            random = torch.Generator().manual_seed(0)
            return torch.randn(shape, generator=random, dtype=torch.float32).to(self.device)
        return self.text_encoder(prompt, name).to(self.device)

    def _encode_negative(self, prompt: str) -> Tensor:
        """The same of a negative prompt, which is remembered."""
        features = self._features.get(prompt)  # one look: another thread may exchange it
        if features is None:
            features = self._encode(prompt, "negative_prompt")
            self._features = {prompt: features}
        return features

    def _latent_size(self, sampling: PixelSize) -> tuple[int, int]:
        """Latent rows and columns. Raises ValueError where they cannot be split into patches."""
        factor = SPATIAL_FACTOR if self.vae is None else self.vae.spatial_factor
        _, patch_rows, patch_columns = self.network.config.patch_size
        if sampling.height % (factor * patch_rows) or sampling.width % (factor * patch_columns):
            raise ValueError(
                f"{sampling.height} x {sampling.width} pixels cannot be split into patches; use multiples of "
                f"{factor * patch_rows} and {factor * patch_columns}"
            )
        return sampling.height // factor, sampling.width // factor


def type_on(device: torch.device | str) -> torch.dtype:
    """What upstream runs transformer and text encoder in, where the device is made for it."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32

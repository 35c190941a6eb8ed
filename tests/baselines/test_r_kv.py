"""R-KV: of keys that are alike the newest is spared, in blocks of rows, whatever their size."""

from __future__ import annotations

import pytest
import torch

from baselines.r_kv import RKv
from tests.methods import select_keys


def test_of_keys_alike_the_newest_is_not_redundant():
    """Keys 1, 3 and 4 are equal: 4 is spared by 1 and 3, and 3 by 4."""
    key = torch.eye(6)[None, [0, 1, 2, 1, 1]]
    mean = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]]) / 5
    torch.testing.assert_close(RKv().redundancy(key), mean.softmax(-1))


def test_a_key_like_no_other_spares_none():
    """In the published code it would spare the first key, to which its cosine here is 0.4."""
    key = torch.tensor([[[1.0, 0.0, 0.0], [0.4, 0.84**0.5, 0.0], [0.0, 0.0, 1.0]]])
    mean = torch.tensor([[0.4, 0.4, 0.0]]) / 3
    torch.testing.assert_close(RKv().redundancy(key), mean.softmax(-1))


@pytest.mark.parametrize("block_bytes", [1, 12 * 30, 12 * 30 * 7, 10**6])
def test_blocks_of_rows_give_what_the_whole_matrix_does(block_bytes):
    key = torch.randn(2, 3, 30, 4, generator=torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.normalize(key, dim=-1) @ torch.nn.functional.normalize(key, dim=-1).mT
    cosines.diagonal(dim1=-2, dim2=-1).zero_()
    for row in cosines.flatten(0, -2):
        alike = (row > 0.5).nonzero().flatten()
        row[alike[-1:]] = 0.0
    expected = cosines.mean(-2).softmax(-1)
    torch.testing.assert_close(RKv().redundancy(key, block_bytes), expected, atol=1e-7, rtol=1e-6)


def test_duplicates_go_the_oldest_first():
    key = torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0))
    key[:, [3, 9, 15, 21]] = key[:, 3:4].clone()
    kept = select_keys(torch.zeros(1, 12, 16), key, 22, RKv(mix_lambda=0.0), 4, 12).indices[0].tolist()
    assert set(range(24)) - set(kept) == {3, 9}


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="mix_lambda=2 must be a number from 0 to 1"):
        RKv(mix_lambda=2)
    with pytest.raises(ValueError, match="threshold=-1 must be a number from 0 to 1"):
        RKv(threshold=-1)
    with pytest.raises(ValueError, match="pool_kernel=2 must be an odd"):
        RKv(pool_kernel=2)

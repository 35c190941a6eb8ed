"""SnapKV: what a window of queries attends to stays, with its neighbours; a frame or a chunk is asked."""

from __future__ import annotations

import pytest
import torch

from baselines.snapkv import SnapKv, pooled
from tests.methods import select_keys

FRAME, CHUNK = 4, 12


def keys(length: int = 24) -> torch.Tensor:
    """Each of another direction: one head, [1, L, L]."""
    return 20.0 * torch.eye(length)[None]


def test_keys_that_the_window_attends_to_stay_with_their_neighbours():
    query = keys()[:, 10:11].expand(1, CHUNK, -1)
    kept = select_keys(query, keys(), 5, SnapKv(pool_kernel=5), FRAME, CHUNK).indices
    assert kept.tolist() == [[8, 9, 10, 11, 12]]
    query = torch.cat([keys()[:, 3:4], keys()[:, 17:18]], dim=1).repeat(1, 2, 1)
    kept = select_keys(query, keys(), 2, SnapKv(pool_kernel=1), FRAME, FRAME).indices
    assert kept.tolist() == [[3, 17]]


@pytest.mark.parametrize(
    ("window", "over", "expected"),
    [
        (2, "frame", [9, 11]),
        (3, "chunk", [2, 6, 10]),
        (100, "frame", [8, 9, 10, 11]),
        (None, "chunk", list(range(12))),
    ],
)
def test_the_window_is_spread_evenly_over_the_last_frame_or_the_chunk(window, over, expected):
    select = SnapKv(window=window, window_over=over)
    tokens = torch.arange(CHUNK)[None, :, None]
    assert select.queries(tokens, FRAME).flatten().tolist() == expected
    assert select.num_queries(FRAME, CHUNK) == len(expected)


def test_query_heads_that_share_a_key_value_head_decide_by_their_mean():
    query = torch.stack([keys()[0, 2:3], keys()[0, 9:10], keys()[0, 9:10], keys()[0, 20:21]])  # heads 0, 1 and 2, 3
    key = keys().expand(2, -1, -1)
    kept = select_keys(query, key, 2, SnapKv(window=1, pool_kernel=1), 1, 1).indices
    assert kept.tolist() == [[2, 9], [9, 20]]


def test_pooling_is_a_mean_or_a_maximum():
    score = torch.tensor([[0.0, 3.0, 0.0, 0.0, 9.0]])
    torch.testing.assert_close(pooled(score, 3, "mean"), torch.tensor([[1.0, 1.0, 1.0, 3.0, 3.0]]))
    assert pooled(score, 3, "max").tolist() == [[3.0, 3.0, 3.0, 9.0, 9.0]]


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="window=0 must be a whole number of queries of at least 1, or null for all"):
        SnapKv(window=0)
    with pytest.raises(ValueError, match="window_over='row' is unknown; choose 'frame' or 'chunk'"):
        SnapKv(window_over="row")
    with pytest.raises(ValueError, match="pooling='sum' is unknown; choose 'mean' or 'max'"):
        SnapKv(pooling="sum")
    with pytest.raises(ValueError, match="pool_kernel=4 must be an odd"):
        SnapKv(pool_kernel=4)
    with pytest.raises(ValueError, match="selection='row' is unknown; choose 'token', 'frame' or 'chunk'"):
        SnapKv(selection="row")
    with pytest.raises(ValueError, match="sink_frames=-1 must be a whole number of latent frames, at least 0"):
        SnapKv(sink_frames=-1)
    with pytest.raises(ValueError, match="recent_share=1 must be a number from 0 to below 1"):
        SnapKv(recent_share=1)

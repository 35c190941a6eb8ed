"""Every selector and every store that conf/ has a file of, by itself, in one layer of MAGI-1 4.5B: time and memory.

Shape letters: H query heads, G key-value heads, T tokens a chunk, L keys, E channels a head.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch
from hydra.utils import get_object
from torch import Tensor
from torch.nn import functional as F

from eval.peak_memory import PeakBytes
from experiments.benchmarks.kv_layer import (
    CHANNELS,
    CHUNKS,
    MIB,
    NUM_GROUPS,
    NUM_HEADS,
    NUM_LAYERS,
    Sizes,
    cell,
    timed,
)
from experiments.job.compose import composed
from experiments.job.groups import config_files
from experiments.job.method import make_method
from experiments.show.kv_memory import kv_text
from flowcache.kv.cache import KvCache
from flowcache.kv.policy import KvPolicy
from flowcache.kv.rotary import RotaryPairs
from flowcache.kv.select.base import Entries, KeySelector
from flowcache.kv.store.base import StoreShape

ATTENDING = 128  # queries by which attention is timed; its time is in proportion to them


def selector_lines(sizes: Sizes, num_runs: int, device: str) -> Iterator[str]:
    """A heading, then a line for every selector that takes a budget, at its own options."""
    yield (
        f"{'selector':>13}  {'queries':>7}  {'choosing ' + str(sizes.budget) + ' of ' + str(sizes.length):>36}  "
        f"{'looking, a row':>14}  {'remembered':>10}"
    )
    for path in config_files("kv"):
        part = get_object(composed([f"kv={path.stem}"]).kv["_target_"])
        if part.selects and not part.by_head:
            select = make_method(composed([f"kv={path.stem}", "kv.budget=2 chunks"])).kv.select
            yield _selector_line(path.stem, select, sizes, num_runs, device)


def _selector_line(name: str, select: KeySelector, sizes: Sizes, num_runs: int, device: str) -> str:
    entries = _entries(select, sizes, device)
    select.allocate(StoreShape(1, 1, NUM_GROUPS, sizes.length, CHANNELS, torch.float32, device))
    looking, remembered = "-", select.nbytes
    if select.observes:
        entries = replace(entries, observed=select.observe(entries))
        remembered += entries.observed.nbytes if select.adds_up else 0
        looking = f"{min(timed(lambda: select.observe(entries), device) for _ in range(num_runs)):.4f} s"
    with PeakBytes() as memory:
        select.select(entries, sizes.budget)
    seconds = [timed(lambda: select.select(entries, sizes.budget), device) for _ in range(num_runs)]
    return (
        f"{name:>13}  {entries.query.shape[-2]:>7}  {cell(seconds, memory.peak):>36}  {looking:>14}  "
        f"{remembered / MIB:>6.2f} MiB"
    )


def _entries(select: KeySelector, sizes: Sizes, device: str) -> Entries:
    """Seeded noise: keys and values [1, G, L, E], and the queries of the chunk behind them that the selector asks."""
    draw = torch.Generator().manual_seed(0)
    key = torch.randn(1, NUM_GROUPS, sizes.length, CHANNELS, generator=draw).to(device)
    query = torch.randn(1, NUM_HEADS, sizes.chunk, CHANNELS, generator=draw).to(device)
    position = torch.arange(sizes.length, dtype=torch.int32, device=device).expand(1, NUM_GROUPS, -1)
    stands = torch.arange(sizes.length, sizes.length + sizes.chunk, device=device)[:, None]
    own, own_stands = (select.queries(each, sizes.frame) for each in (query, stands))
    pairs = torch.arange(CHANNELS // 2, device=device)
    turns = 1e4 ** (-pairs.float() / len(pairs))
    rotary = RotaryPairs(pairs, pairs + len(pairs), turns, torch.zeros(sizes.frame, len(pairs), device=device))
    return Entries(
        own, key, key, position, None, 0, sizes.frame, sizes.chunk, query_position=own_stands[:, 0], rotary=rotary
    )


def store_lines(sizes: Sizes, num_runs: int, device: str) -> Iterator[str]:
    """A heading, then a line for every store, at its own options, full precision first."""
    yield (
        f"{'store':>14}  {'settling a chunk':>35}  {f'reading {CHUNKS}':>9}  {'attention':>9}  {'bits a number':>13}  "
        f"of {NUM_LAYERS} layers, GiB"
    )
    names = [path.stem for path in config_files("kv/store")]
    plain_s = None
    for name in sorted(names, key=lambda name: name != "full_precision"):
        line, attention_s = _store_line(name, sizes, num_runs, device, plain_s)
        plain_s = attention_s if plain_s is None else plain_s
        yield line


def _store_line(name: str, sizes: Sizes, num_runs: int, device: str, plain_s: float | None) -> tuple[str, float]:
    """The line, and seconds of one chunk's attention to all chunks, reading among it."""
    store = make_method(composed([f"kv/store={name}"])).kv.store
    policy = KvPolicy(store=replace(store, sink_chunks=0) if store.sink_chunks else store)
    shape = (NUM_GROUPS, CHANNELS, sizes.chunk, CHUNKS + 1)
    cache = KvCache(2, *shape, device=device, policy=policy, open_chunks=1)  # a second layer, whose turn is between
    deep = KvCache(NUM_LAYERS, *shape, dtype=torch.bfloat16, device="meta", policy=policy, open_chunks=1)
    draw = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 1, NUM_GROUPS, sizes.chunk, CHANNELS, generator=draw).to(device)
    query = torch.randn(1, NUM_HEADS, ATTENDING, CHANNELS, generator=draw).to(device)
    cache.write(0, 0, key, value)
    with PeakBytes() as memory:
        cache.finish(0)
    settling, reading, attending = [], [], []
    for chunk in range(1, CHUNKS):
        cache.write(0, chunk, key, value)
        settling.append(timed(lambda chunk=chunk: cache.finish(chunk), device))
    _attend(cache, query)
    for _ in range(num_runs):
        cache.read(1, 0, CHUNKS - 1)
        reading.append(timed(lambda: cache.read(0, 0, CHUNKS - 1), device))
        attending.append(timed(lambda: _attend(cache, query), device))
    whole_s = statistics.median(reading) + statistics.median(attending) * sizes.chunk / ATTENDING
    more = f"{whole_s:.3g} s" if plain_s is None else f"{whole_s / plain_s - 1:+.1%}"
    line = (
        f"{name:>14}  {cell(settling, memory.peak):>35}  {statistics.median(reading):>7.4f} s  {more:>9}  "
        f"{cache.bits_a_number:>13.2f}  {kv_text(deep.sizes, 2**30)}"
    )
    return line, whole_s


def _attend(cache: KvCache, query: Tensor) -> Tensor:
    """To what was read last, [1, H, Q, E]."""
    key, value = cache.read(0, 0, CHUNKS - 1)
    shared = query.shape[1] // key.shape[1]
    mask = cache.mask(0, 0, CHUNKS - 1, query.unflatten(1, (-1, shared)).flatten(2, 3))
    mask = None if mask is None else mask.repeat_interleave(shared, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

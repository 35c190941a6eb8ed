"""What a card takes, as a job is, with keys in host memory and on several cards; and which cards that fits."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from experiments.job.cli import compose_config
from experiments.job.job import make_job
from experiments.run.fits import CARDS_GB, Fit, fits, print_fits
from experiments.run.memory import TEXT_ENCODER, Memory
from flowcache.models.magi import Magi
from tests.experiments.conftest import SMALL

GIB = 2**30
MAGI = [*SMALL, "method=vanilla", "setting.num_frames=240"]


@pytest.mark.parametrize(
    ("weights_gib", "text_gib", "cards"),
    [(10, 0, CARDS_GB), (20, 0, CARDS_GB[1:]), (20, 60, (40, 48, 96, 141)), (130, 0, ())],
)
def test_a_tenth_of_a_card_stays_free_and_the_text_encoder_leaves_small_ones(weights_gib, text_gib, cards):
    weights = {"transformer": weights_gib * GIB, **({TEXT_ENCODER: text_gib * GIB} if text_gib else {})}
    assert Fit("as asked", Memory(weights, GIB, GIB, False)).cards_gb == cards


def test_a_way_that_cannot_be_says_why():
    assert Fit("parallel=branches, 2 cards", None, "no guidance").told == "no: no guidance"
    told = Fit("kv/store=host", Memory({"transformer": 3 * GIB, "VAE": GIB}, GIB, GIB, False, 3 * GIB)).told
    assert told == "6 GiB and 3 GiB of host memory; fits 24, 40, 48, 80, 96, 141 GB"


def test_every_way_is_counted_on_one_card():
    config = compose_config(MAGI)
    job = make_job(config)
    found = {fit.name: fit for fit in fits(job, config)}
    asked, host, heads = (found[name].memory for name in ("as asked", "kv/store=host", "parallel=heads, 2 cards"))
    whole = Magi.on_meta(checkpoint=job.checkpoint).generation("any", 240, job.method, 0, **job.generation_options)
    assert asked.kv == whole.kv_bytes_allocated
    assert host.kv < asked.kv
    assert host.host == asked.kv * 9 // 10  # all chunks but the last, which none reads
    assert heads.kv * 2 == asked.kv
    assert heads.working <= asked.working
    assert heads.weights == host.weights == asked.weights
    assert "MAGI-1 has no guidance branches" in found["parallel=branches, 2 cards"].refused
    assert list(found)[-1] == "parallel=heads, 4 cards"


def test_a_line_a_way_is_printed():
    config = compose_config(MAGI)
    console = Console(file=io.StringIO(), width=300)
    print_fits(make_job(config), config, console)
    said = console.file.getvalue().splitlines()
    assert said[0].split(":")[0].endswith("141 GB, of which a tenth stays free)")
    assert [line.split(":")[0].strip() for line in said[1:3]] == ["as asked", "kv/store=host"]
    assert len(said) == 6

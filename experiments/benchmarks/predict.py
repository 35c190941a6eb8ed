"""What a run takes on a GPU that is not here: ``python -m experiments.bench predict [device=h200] [key=value ...]``.

``device=`` is h200, h100, a800 or 4090. The run is that of the other arguments, at the paper's setting with random
weights. Every operator of it is logged on an emulated device, and takes the longer of computing and moving its bytes at
the rates that kernels reach on the card (experiments/benchmarks/cards.py): a prediction, of which nothing was timed.
Methods that decide by distances follow a schedule of the published compute. Where results/gpu/ holds figures of the
card, they stand beside. ``publish=true`` predicts the published runs on every card instead, and writes
results/tables/gpu_predicted and gpu_operators.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.utils import get_object

from experiments.benchmarks.cards import CARDS, Card
from experiments.benchmarks.emulation.operators import OperatorLog, is_in_row, with_layers
from experiments.benchmarks.emulation.video import Emulated, emulate
from experiments.benchmarks.gpu.subject import Subject
from experiments.benchmarks.roofline import PARTS, roofline
from experiments.job.errors import BadInput
from experiments.show.reported import read_reported
from experiments.show.results import PUBLISHED, Column, Destination, Table, made_by, markdown, publishing
from flowcache.method import Method

OPTIONS = ("device", "publish")
GIB, PETA, TERA = 2**30, 1e15, 1e12
EMULATED = "device=cuda:0"
BUDGET = "kv.budget=1 chunk"
# By model, the methods whose predictions are published, with their overrides.
PUBLISHED_RUNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "magi": (("vanilla",), ("flowcache_fast", BUDGET), ("flowcast_fast",)),
    "skyreels": (("vanilla",), ("flowcache_fast", BUDGET), ("flowcast_fast",)),
    "wan": (("vanilla",), ("flowcast_fast",)),
}


@dataclass(frozen=True)
class Run:
    """One video, as any card is asked for it.

    Attributes:
        log: of the whole network.
        peak_bytes: most that tensors take on the device at once, weights included; without a text encoder.
    """

    model: str
    method: str
    log: OperatorLog
    num_rows: int
    peak_bytes: int


def run(overrides: Sequence[str], device: str = "h200", publish: str = "false") -> None:
    """Print one run's roofline; or publish those of ``PUBLISHED_RUNS``. Raises BadInput."""
    asked, _ = publishing([f"publish={publish}"])
    if device not in CARDS:
        raise BadInput(f"device={device} is no card that is known; choose {', '.join(CARDS)}")
    if asked:
        runs = [
            predicted_run((f"model={model}",), *method)
            for model, methods in PUBLISHED_RUNS.items()
            for method in methods
        ]
        publish_runs(runs, Destination(PUBLISHED))
        return
    method = next((each.partition("=")[2] for each in overrides if each.startswith("method=")), "vanilla")
    rest = [each for each in overrides if not each.startswith(("method=", "device="))]
    made = predicted_run(tuple(rest), method)
    card = CARDS[device]
    print(markdown(table_of([row_of(made, card, measured(PUBLISHED / "gpu", card, made))], card)))
    print(markdown(operators_table([operators_of(made)])))


def predicted_run(overrides: tuple[str, ...], method: str, *options: str) -> Run:
    """Emulate a job's video with one and with two layers, and tell the whole network's."""
    subject = Subject(("setting=paper", EMULATED, *overrides))
    job, policy = subject.job(), _method(subject, method, *options)
    one, two = (emulate(job, policy, layers, decodes=layers == 2) for layers in (1, 2))
    layers = _num_layers(job)
    peak = two.peak_bytes + (layers - 2) * (_bytes_by_layers(two) - _bytes_by_layers(one))
    name = " ".join((method, *options))
    return Run(job.model_name, name, with_layers((one.log, two.log), layers), two.num_rows, peak)


def _bytes_by_layers(made: Emulated) -> int:
    """Of what grows with the network's layers: its weights and the KV caches."""
    return made.weights_bytes["transformer"] + made.trace.kv_bytes_allocated


def _method(subject: Subject, name: str, *options: str) -> Method:
    try:
        return subject.method(name, *options)
    except KeyError as error:
        raise BadInput(
            f"method={name} decides by what it measures, and no published compute says how often; choose one of the "
            "paper's, or one that decides without"
        ) from error


def _num_layers(job: Any) -> int:
    """Of the whole network, which costs nothing on device meta."""
    model = get_object(job.loader.replace("from_random", "on_meta"))(**job.random_weights, checkpoint=job.checkpoint)
    transformer = getattr(model, "dit", None) or model.network
    return transformer.config.num_layers


def row_of(made: Run, card: Card, beside: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Of the table of predictions: seconds by part, and what was measured, where it was."""
    told = roofline(made.log, card)
    return {
        "model": made.model,
        "method": made.method,
        "card": card.title,
        "predicted_s": told.total_s,
        **{f"{part}_s": told.seconds[part] for part in PARTS},
        "share_of_ceiling": told.share_of_ceiling,
        "launch_s": told.launch_s,
        "memory_gib": made.peak_bytes / GIB,
        "fits": "yes" if made.peak_bytes / GIB < 0.95 * card.memory_gib else "no",
        **(beside or {}),
    }


def measured(folder: Path, card: Card, made: Run) -> dict[str, float]:
    """Seconds that ``bench gpu`` measured of the same run on such a card; nothing where it did not."""
    wanted = f"{made.model}_{made.method.partition(' ')[0]}.json"
    prefix = "f_" if BUDGET in made.method else "[cd]_"
    for path in sorted(folder.glob(f"*{card.title}*/{prefix}{wanted}")):
        return {"measured_s": json.loads(path.read_text(encoding="utf-8"))["figures"]["latency_s"]}
    return {}


def operators_of(made: Run) -> dict[str, Any]:
    """Of the table of operators: what no card changes."""
    log = made.log
    launches = log.launches_by_row()

    def peta(*kinds: str) -> float:
        return log.totals(lambda place, o: o.kind in kinds and place.section not in ("vae", "compression")).flops / PETA

    def tera(section: str) -> float:
        return (
            log.totals(lambda place, o: o.kind == "elementwise" and _group(place.section) == section).num_bytes / TERA
        )

    in_rows = Counter(incident.event for incident in log.incidents.elements() if is_in_row(incident.place))
    return {
        "model": made.model,
        "method": made.method,
        "rows": made.num_rows,
        "gemm_pflop": peta("product", "convolution"),
        "attention_pflop": peta("attention"),
        "compression_pflop": log.totals(lambda place, o: place.section == "compression").flops / PETA,
        "vae_pflop": log.totals(lambda place, o: place.section == "vae").flops / PETA,
        "elementwise_tb": tera("rows"),
        "compression_tb": tera("compression"),
        "vae_tb": tera("vae"),
        "launches_most_a_row": max(launches.values(), default=0),
        "launches": sum(launches.values()),
        "reads_in_rows": in_rows["read by the host"],
        "copies_in_rows": in_rows["copy to the device"],
        "float64_in_rows": in_rows["float64"],
    }


def _group(section: str) -> str:
    return section if section in ("vae", "compression") else "rows"


_PREDICTED = (
    Column("model", "model"),
    Column("method", "method"),
    Column("card", "card"),
    Column("s", "predicted_s", "{:.1f}"),
    Column("measured s", "measured_s", "{:.1f}"),
    Column("paper s", "paper_s", "{:.0f}"),
    Column("paper / predicted", "paper_over_predicted", "{:.2f}"),
    *(Column(part, f"{part}_s", "{:.1f}") for part in PARTS),
    Column("efficiency", "efficiency", "{:.2f}"),
    Column("share of ceiling", "share_of_ceiling", "{:.2f}"),
    Column("host s", "launch_s", "{:.1f}"),
    Column("GiB", "memory_gib", "{:.1f}"),
    Column("fits", "fits"),
)
_OPERATORS = (
    Column("model", "model"),
    Column("method", "method"),
    Column("rows", "rows"),
    Column("GEMM PFLOP", "gemm_pflop", "{:.1f}"),
    Column("attention", "attention_pflop", "{:.1f}"),
    Column("compression", "compression_pflop", "{:.3f}"),
    Column("VAE", "vae_pflop", "{:.2f}"),
    Column("elementwise TB", "elementwise_tb", "{:.1f}"),
    Column("compression TB", "compression_tb", "{:.1f}"),
    Column("VAE TB", "vae_tb", "{:.1f}"),
    Column("launches a row, most", "launches_most_a_row", "{:.0f}"),
    Column("reads", "reads_in_rows"),
    Column("copies", "copies_in_rows"),
    Column("float64", "float64_in_rows"),
)


def table_of(rows: Sequence[Mapping[str, Any]], card: Card | None = None) -> Table:
    of = "" if card is None else f" Of one {card.title}."
    return Table(
        "Predicted, not timed.",
        f"Seconds of a whole video at the paper's setting, and what they are made up of.{of} Nothing was run or "
        f"timed; {made_by()}.",
        _PREDICTED,
        pd.DataFrame(rows),
        (
            "*efficiency*: the speed-up over vanilla as a share of what its FLOPs would allow, decoding included.",
            "*share of ceiling*: of a large matrix product's rate, that rows and compression reach. *host*: what "
            "launching takes, beside the card; the longer counts. *GiB*: without the text encoder.",
            "*paper*: latencies of the FlowCache paper, on an A800, of its authors' code.",
        ),
    )


def operators_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "Operators of a whole video, emulated.",
        "Reads by the host, copies to the device and float64 operators are those within rows. Nothing was run or "
        f"timed; {made_by()}.",
        _OPERATORS,
        pd.DataFrame(rows),
    )


def publish_runs(runs: Sequence[Run], to: Destination) -> None:
    """On every card, with the paper's latencies beside the A800's, and the operators."""
    vanilla = {made.model: made for made in runs if made.method == "vanilla"}
    rows = []
    for made in runs:
        for name, card in CARDS.items():
            beside = {**measured(PUBLISHED / "gpu", card, made), **_paper(made, name, card)}
            rows.append(row_of(made, card, {**beside, "efficiency": efficiency(made, vanilla[made.model], card)}))
    to.save_table("gpu_predicted", table_of(rows))
    to.save_table("gpu_operators", operators_table([operators_of(made) for made in runs]))


def efficiency(made: Run, vanilla: Run, card: Card) -> float:
    """The speed-up over vanilla as a share of what its FLOPs would allow."""
    fast, slow = (roofline(each.log, card) for each in (made, vanilla))
    return (slow.total_s / fast.total_s) / (slow.flops / fast.flops)


def _paper(made: Run, name: str, card: Card) -> dict[str, float]:
    """The paper's latency of the run: its vanilla, and FlowCache with the compressed cache."""
    if name != "a800" or made.model not in ("magi", "skyreels"):
        return {}
    if made.method not in ("vanilla", f"flowcache_fast {BUDGET}"):
        return {}
    seconds = read_reported(made.model)[0]["latency_s"][made.method.partition(" ")[0]]
    return {"paper_s": seconds, "paper_over_predicted": seconds / roofline(made.log, card).total_s}

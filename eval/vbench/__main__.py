"""Command line: `python -m eval.vbench list | install | score <folder>`.

Exit codes: 0 done, 1 something could not be scored or installed, 2 bad input, or nothing is installed to score with.
"""

import argparse
import json
import sys
from dataclasses import asdict, astuple
from pathlib import Path

from eval.atomic import atomic_path
from eval.errors import MetricUnavailable
from eval.vbench import environment
from eval.vbench.scoring import Scores, score
from eval.vbench.suite import SUITE
from eval.vbench.totals import totals


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m eval.vbench", description="VBench by its official package.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the 16 dimensions, what each loads, what is missing and where to get it")
    commands.add_parser("install", help="make the package's environment in the cache")
    scoring = commands.add_parser("score", help="score a folder of mp4 files")
    scoring.add_argument("folder", type=Path, help="of <prompt>.mp4 or <prompt>-<index>.mp4")
    scoring.add_argument("--dimensions", help="comma-separated; by default all that can run")
    scoring.add_argument("--standard", action="store_true", help="the benchmark's own prompts and videos")
    scoring.add_argument("--partial", action="store_true", help="allow missing videos, and totals of some dimensions")
    scoring.add_argument("--device", default="auto", help="auto, cpu or cuda")
    scoring.add_argument("--output", type=Path, help="write the scores, per video too, to this JSON file")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            print(listing())
            return 0
        if options.command == "install":
            environment.install(lambda text: print(text, flush=True))
            return 0
        return _score(options)
    except ValueError as error:
        print(f"vbench: {error}", file=sys.stderr)
        return 2
    except MetricUnavailable as error:
        print(f"vbench: {error}", file=sys.stderr)
        return 1 if options.command == "install" else 2


def listing() -> str:
    """Every dimension with what it still needs."""
    lines = []
    for dimension in SUITE:
        missing = dimension.missing()
        videos = "any video" if dimension.takes_any_video else "the benchmark's prompts"
        state = "missing:" if missing else "weights are here" if dimension.needs else "needs no weights"
        lines.append(f"{dimension.name:<23} {dimension.group:<9} {videos:<24} {state}")
        lines += [f"    {need}" for need in missing]
    installed = environment.is_installed()
    lines.append(f"environment: {environment.folder() if installed else 'missing, run ' + environment.INSTALL_COMMAND}")
    return "\n".join(lines)


def _score(options: argparse.Namespace) -> int:
    names = None if options.dimensions is None else options.dimensions.split(",")
    scores = score(
        options.folder,
        names,
        mode="vbench_standard" if options.standard else "custom_input",
        device=options.device,
        partial=options.partial,
        report=lambda text: print(text, flush=True),
    )
    if options.output:
        with atomic_path(options.output) as temporary:
            temporary.write_text(json.dumps(asdict(scores), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.standard:
        print(total_lines(scores, options.partial))
    incomplete = scores.left_out or (scores.missing_scores and not options.standard)
    return 1 if incomplete or not scores.results or (names and scores.not_run) else 0


def total_lines(scores: Scores, partial: bool) -> str:
    """Quality, Semantic and Total, or why there are none."""
    try:
        combined = totals(scores.means, missing_scores=scores.missing_scores, partial=partial)
    except ValueError as refusal:
        return f"no total: {refusal} (--partial)"
    values = zip(("Quality", "Semantic", combined.name), astuple(combined), strict=False)
    return "\n".join(f"{name}: {'n/a' if value is None else f'{value:.4f}'}" for name, value in values)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may not show every name
    sys.exit(main())

"""One page of all results, to pass on:
``python -m experiments.leaderboard [publish=true] [output_dir=outputs] [videos=true]``.

Every method of every family at equal compute: curves, paired differences, and one table that sorts and filters,
measured apart from reported. It is made from results/tables and results/reported alone; no model runs. The page is
output_dir/leaderboard/index.html, or results/leaderboard/index.html with publish=true. ``videos=true`` takes short
videos along, of one prompt a family, from the finished records of output_dir.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from eval.atomic import atomic_path
from experiments.job.errors import BadInput, command
from experiments.job.names import nearest
from experiments.job.paths import ROOT, results_folder, shown
from experiments.show.attention import AS_PUBLISHED, FLAG, causal_baseline
from experiments.show.leaderboard_curves import curves_of, paired_of
from experiments.show.leaderboard_rows import COLUMNS, CURVES, groups_of
from experiments.show.leaderboard_videos import take_videos, videos_of
from experiments.show.methods import known_methods
from experiments.show.published import read_published
from experiments.show.report import TEMPLATE as OF_REPORT
from experiments.show.report import joined, look_of, template
from experiments.show.results import BOOTSTRAP, PUBLISHED, TABLES, destination, publishing
from experiments.show.traits import KINDS, comment_of, traits_of

TEMPLATE = Path(__file__).with_name("leaderboard_template")
FAMILIES = {
    "magi": ("MAGI-1", "magi"),
    "skyreels": ("SkyReels-V2", "skyreels"),
    "wan": ("causal Wan, four steps", "wan"),
    "wan_multistep": ("causal Wan, many steps", "wan_teacher"),
}  # by model, its title and the folder of its small checkpoint in experiments/embedded
SETTING = "embedded"
COMMAND = "python -m experiments.leaderboard publish=true"


def make_page(folder: Path) -> str:
    """The page for a folder, whose links lead from there; videos that lie in it are shown. The same tables give the
    same text."""
    families, groups, data = [], [], {}
    clips = videos_of(folder)
    for model, (title, checkpoint) in FAMILIES.items():
        stem = f"{model}_{SETTING}"
        curves = curves_of(stem)
        groups += groups_of(model, stem, title)
        data[model] = {"curves": curves, "clip": clips.get(model)}
        families.append(
            {
                "model": model,
                "title": title,
                "card": ROOT / "experiments" / "embedded" / checkpoint / "README.md",
                "curves": curves,
                "figures": _figures(stem, curves),
                "paired": paired_of(stem),
                "field": any(curve["experiment"] == CURVES[0] for curve in curves),
                "tables": [path for name in ("main", *CURVES) if (path := TABLES / f"{stem}_{name}.md").is_file()],
                "frames": _existing(PUBLISHED / "figures" / f"{stem}_frames.png"),
                "clip": clips.get(model),
                "causal_baseline": causal_baseline(model),
            }
        )
    methods = [{"name": name, "told": comment_of(name), "traits": traits_of(name)} for name in known_methods()]
    names = {name for each in families for table in each["paired"] for name in (row["method"] for row in table["rows"])}
    names |= {row["method"] for group in groups for row in group["rows"]} | set(known_methods())
    looks = {
        name: look_of(name) for name in sorted(names) if traits_of(name) and " + " not in name and ", " not in name
    }
    return template(TEMPLATE).render(
        style=joined(OF_REPORT / "report.css", TEMPLATE / "leaderboard.css"),
        script=joined(
            *(OF_REPORT / f"{name}.js" for name in ("page", "tables")),
            *(TEMPLATE / f"{name}.js" for name in ("filters", "curves", "clips")),
        ),
        families=families,
        groups=groups,
        headings=[column.heading for column in COLUMNS],
        speedup=[column.key for column in COLUMNS].index("speedup"),
        methods=methods,
        kinds=KINDS,
        data={"looks": looks, "families": data},
        link=lambda path: Path(os.path.relpath(path, folder)).as_posix(),
        docs=ROOT / "docs",
        root=ROOT,
        bootstrap=BOOTSTRAP,
        flag=FLAG,
        as_published=AS_PUBLISHED,
        command=COMMAND,
    )


def _figures(stem: str, curves: list[dict[str, Any]]) -> list[Path]:
    """Of the first table that has curves, for readers without scripts."""
    for curve in curves[:1]:
        name = "pareto" if curve["experiment"] == "main" else curve["experiment"]
        return [path for path in [_existing(PUBLISHED / "figures" / f"{stem}_{name}.svg")] if path]
    return []


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def write_page(folder: Path) -> Path:
    """Save the page of a folder; whole or not at all. Raises BadInput where there is no table to make it from."""
    stems = [f"{model}_{SETTING}" for model in FAMILIES]
    if not any(read_published(f"{stem}_main") for stem in stems):
        raise BadInput(
            f"{shown(TABLES)} has no {stems[0]}_main.csv or other main table; make it with experiments.tables"
        )
    page = make_page(folder)
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "index.html"


@command("leaderboard")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    given = {"output_dir": "outputs", "videos": "false"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in given or not (equals and value):
            raise BadInput(f"{argument} is no option=value of this command; {nearest(key, [*given, 'publish'])}")
        given[key] = value
    if given["videos"] not in ("true", "false"):
        raise BadInput(f"videos={given['videos']} must be true or false; they are of the records of output_dir")
    output_dir = results_folder(given["output_dir"])
    folder = destination(output_dir, publish).folder / "leaderboard"
    if given["videos"] == "true":
        for line in take_videos(list(FAMILIES), output_dir, folder):
            print(f"leaderboard: left out, {line}")
    print(f"written {shown(write_page(folder))}; open it in a browser")
    return 0

"""Short videos beside the leaderboard: of one prompt a family, every method's, from records that are finished.

They lie in the page's folder, with an index.json that says what they are; the page shows those that are there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from eval.atomic import atomic_path
from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import Job, make_job
from experiments.job.paths import shown
from experiments.records import store_of
from experiments.records.collect import collect
from experiments.show.first_clip import first_shown
from experiments.show.methods import found_methods
from experiments.show.report import find_takes

FOLDER, INDEX = "videos", "index.json"
MOST_BYTES = 2**20  # of a video: a longer one is left out
MOST_BYTES_OF_ALL = 8 * 2**20


def take_videos(models: list[str], output_dir: Path, folder: Path) -> list[str]:
    """Copy the previews of one prompt of every model that has records in ``output_dir`` beside the page in ``folder``,
    in place of those that are there. Returns what was left out, and why, a line each.

    Raises BadInput if there is not one.
    """
    index, copies, left_out = {}, [], []
    for model in models:
        job = make_job(compose_config([f"model={model}", f"output_dir={output_dir}"]))
        try:
            clip, own, told = _clip_of(job)
        except BadInput as error:
            left_out.append(f"{model}: {error}")
            continue
        left_out += told
        if own:
            index[model] = clip | {"takes": {name: place for name, (place, _) in own.items()}}
            copies += own.values()
    if not copies:
        raise BadInput(f"{shown(output_dir)} has no finished video to show; {'; '.join(left_out)}")
    total = sum(path.stat().st_size for _, path in copies)
    if total > MOST_BYTES_OF_ALL:
        raise BadInput(
            f"{len(copies)} videos of {shown(output_dir)} take {total / 2**20:.1f} MiB, and the page may have "
            f"{MOST_BYTES_OF_ALL / 2**20:g}; make shorter ones (setting.num_frames)"
        )
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    for place, path in copies:
        with atomic_path(folder / place) as temporary:
            shutil.copyfile(path, temporary)
    with atomic_path(folder / FOLDER / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return left_out


def _clip_of(job: Job) -> tuple[dict[str, Any], dict[str, tuple[str, Path]], list[str]]:
    """What is shown of a job's model, by method where its video goes and where it is, and what is left out."""
    frame, store = collect(job), store_of(job)
    takes = find_takes(job, frame, found_methods(frame, job))
    most = max(map(len, takes.values()), default=0)
    clips = sorted(clip for clip, own in takes.items() if len(own) == most)  # others some experiments alone have
    place, frame_number = first_shown(store, [takes[clip].get(job.baseline) for clip in clips])
    prompt, seed = clips[place]
    own, left_out = {}, []
    for name, record in takes[clips[place]].items():
        path = store.preview_path(record.key)
        if not path.is_file():
            left_out.append(f"{job.model_name}, {name}: no preview file")
        elif path.stat().st_size > MOST_BYTES:
            left_out.append(f"{job.model_name}, {name}: its video takes more than {MOST_BYTES / 2**20:g} MiB")
        else:
            own[name] = (f"{FOLDER}/{job.model_name}_{name}.mp4", path)
    clip = {"prompt": prompt, "seed": seed, "fps": job.fps, "frames": job.num_frames, "first": frame_number}
    return clip | {"baseline": job.baseline}, own, left_out


def videos_of(folder: Path) -> dict[str, Any]:
    """By model, the clip whose videos lie beside the page in ``folder``; empty if there are none."""
    path = folder / FOLDER / INDEX
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

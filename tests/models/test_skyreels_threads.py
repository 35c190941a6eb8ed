"""One SkyReels-V2 model in two threads: each video is the one that it makes alone."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from torch import Tensor

from flowcache import generate
from flowcache.models.skyreels import SkyReels
from tests.methods import vanilla
from tests.models.skyreels_pipeline import write_checkpoint


@pytest.mark.parametrize("given", ["nothing", "an image", "a video"])
@pytest.mark.parametrize("offload", [False, True])
def test_two_threads_make_what_each_makes_alone(tmp_path, given, offload):
    model = SkyReels.from_pretrained(write_checkpoint(tmp_path), offload=offload)
    frames = torch.randint(0, 256, (2, 9, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def video(i: int) -> Tensor:
        options = {"negative_prompt": ("left", "right")[i]}
        if given == "an image":
            options["image"] = frames[i, 0]
        elif given == "a video":
            options["prefix_video"] = frames[i]
        num_frames = 48 if given == "a video" else 45  # three windows
        return torch.cat(
            list(generate(model, ("a red circle", "a blue square")[i], num_frames, vanilla(), i, **options))
        )

    alone, together = [video(0), video(1)], [[], []]

    num_threads = torch.get_num_threads()

    def work(i: int) -> None:
        torch.set_num_threads(num_threads)  # a new thread has its own number, and adds sums up in another order
        together[i] += [video(i) for _ in range(2)]

    threads = [Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, made in zip(alone, together, strict=True):
        assert [torch.equal(one, expected) for one in made] == [True, True]

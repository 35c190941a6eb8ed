"""What rounding does to a video: noise that is moved, and what is said of it."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from experiments.show import noise_floor
from experiments.studies import floor
from tests.experiments.made_results import check_says_all


def test_every_number_drawn_is_moved_by_its_own_and_other_seeds_draw_the_same():
    plain = torch.randn(2, 3, generator=torch.Generator().manual_seed(7))
    with floor.MovedNoise(1e-3, seed=1):
        moved = torch.randn(2, 3, generator=torch.Generator().manual_seed(7))
        again = torch.randn(2, 3, generator=torch.Generator().manual_seed(7))
        assert torch.equal(torch.zeros(3), torch.zeros(3)), "what is not drawn stays"
    assert 0 < (moved - plain).abs().max() < 5e-3
    assert not torch.equal(moved, again), "each draw is moved by other numbers"


def test_shares_medians_and_identical_videos():
    frame = pd.DataFrame(
        {
            "way": ["a"] * 3 + ["b"],
            "prompt": ["x", "y", "z", "x"],
            "psnr": [25.0, 45.0, 61.0, math.inf],
            "latent_snr_db": [10.0, 20.0, 30.0, 140.0],
        }
    )
    first, second = floor.summary(frame).to_dict("records")
    assert (first["median_db"], first["least_db"], first["n"]) == (45.0, 25.0, 3)
    assert first["mean_capped_db"] == pytest.approx((25 + 45 + 60) / 3)
    assert [first[f"over_{level}_db"] for level in floor.LEVELS_DB] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert second["mean_db"] == math.inf
    assert second["mean_capped_db"] == 60.0


@pytest.mark.parametrize("model", ["magi", "skyreels"])
def test_the_command_makes_its_table(tmp_path, model):
    small = ["setting.num_frames=48", "setting.num_steps=4"] if model == "magi" else ["setting.num_steps=2"]
    given = [f"model={model}", *small, "num_prompts=1", "workers=1", "threads=1", f"output_dir={tmp_path}"]
    assert floor.main(given) == 0
    data = pd.read_csv(tmp_path / "tables" / f"{model}_embedded_floor.csv")
    assert list(data["way"]) == list(floor.ways())
    by_way = data.set_index("way")["median_db"]
    assert by_way["noise moved by 1e-06"] > by_way["noise moved by 1e-04"] > 40
    assert by_way["bfloat16 products"] > 20
    assert set(data["method"]) == {"vanilla_kv" if model == "skyreels" else "vanilla"}
    check_says_all(tmp_path / "tables" / f"{model}_embedded_floor.md")
    folders, (weights,) = (tmp_path,), set(data["weights"])
    found = noise_floor.noise_floor(folders, model, "embedded", data["method"][0], [weights], "latent_snr")
    assert found == pytest.approx(data["latent_mean_db"][0])


@pytest.fixture
def floor_table(tmp_path):
    frame = pd.DataFrame(
        {
            "way": [noise_floor.WAY, "bfloat16 products"],
            "method": "vanilla",
            "weights": "abc",
            "mean_capped_db": [52.5, 40.0],
            "latent_mean_db": [71.0, 30.0],
        }
    )
    (tmp_path / "tables").mkdir()
    frame.to_csv(tmp_path / "tables" / "magi_embedded_floor.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(("quality", "db"), [("psnr", 52.5), ("latent_snr", 71.0)])
def test_figures_show_the_floor_of_their_own_videos(floor_table, tmp_path, capsys, quality, db):
    folders = (tmp_path / "none_here", floor_table)
    assert noise_floor.noise_floor(folders, "magi", "embedded", "vanilla", ["abc"], quality) == db
    assert not capsys.readouterr().err
    for method, weights in (("vanilla_kv", ["abc"]), ("vanilla", ["abd"]), ("vanilla", ["abc", "abd"])):
        assert noise_floor.noise_floor(folders, "magi", "embedded", method, weights, quality) is None
        assert "python -m experiments.floor model=magi measures it" in capsys.readouterr().err
    assert noise_floor.noise_floor(folders, "wan_multistep", "embedded", "vanilla", ["abc"], quality) is None
    assert "model=wan_multistep measures it" in capsys.readouterr().err


def test_the_floor_is_a_line_with_a_name_and_none_is_no_line():
    figure, (with_it, without) = plt.subplots(2)
    noise_floor.draw_floor(with_it, 52.5)
    noise_floor.draw_floor(without, None)
    (line,) = with_it.lines
    assert list(line.get_ydata()) == [52.5, 52.5]
    assert line.get_label() == "noise moved by 1e-06"
    assert not without.lines
    plt.close(figure)

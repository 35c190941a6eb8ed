"""The library's named methods are the suite's, without Hydra."""

from __future__ import annotations

import subprocess
import sys

import pytest

from experiments.job import shipped
from experiments.job.compose import named_method
from experiments.job.paths import ROOT
from flowcache.forecast.linear import Linear
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.methods import MODELS, SETTINGS, named, names, of_description, plan
from flowcache.reuse.placed import Placed


def test_what_is_shipped_is_what_conf_composes_to():
    expected = shipped.texts()
    assert {*expected} == {*shipped.FOLDER.rglob("*.json")}, "run: python -m experiments.job.shipped"
    for path, text in expected.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m experiments.job.shipped"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_name_gives_the_suites_method(model, setting):
    for name in names():
        assert named(name, model, setting) == named_method(name, model, setting)[0]


def test_a_method_is_described_and_made_again():
    made = Method(
        reuse=Placed(share=0.25, plan=plan("magi_embedded")),
        forecast=Linear(damping=0.5, correction=1),
        kv=KvPolicy(select=Joint(mix_lambda=0.1), budget="2 chunks"),
        near_clean=False,
    )
    again = of_description(made.described())
    assert again == made
    assert again.described() == made.described()
    described = made.described()
    described["reuse"]["plan"]["sha256"] = "0" * 16
    with pytest.raises(ValueError, match="the plan magi_embedded here is another"):
        of_description(described)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"method='flowcast_fest' is unknown; did you mean flowcast_fast\?"):
        named("flowcast_fest", "magi")
    with pytest.raises(ValueError, match=r"model='sky' is unknown; .*there are magi, skyreels"):
        named("vanilla", "sky")
    with pytest.raises(
        ValueError, match="there is no plan 'sky'; there are magi_embedded, magi_embedded_hold, skyreels_embedded"
    ):
        plan("sky")


def test_it_needs_neither_hydra_nor_the_suite_and_says_what_comes_with_a_checkout_alone():
    code = (
        "import sys; sys.modules.update(hydra=None, omegaconf=None, baselines=None, diffusers=None)\n"
        "from flowcache.methods import named\n"
        "print(named('flowcast_fast', 'skyreels', 'embedded').reuse.plan.name)\n"
        "named('every_k', 'skyreels')"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert ran.stdout.strip() == "skyreels_embedded"
    assert "method 'every_k' has a part of other people's (baselines" in ran.stderr

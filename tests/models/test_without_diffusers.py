"""diffusers is an extra: SkyReels-V2 without it says which, and MAGI-1 does without."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from experiments.job.paths import ROOT
from flowcache.models import skyreels

MESSAGE = r"SkyReels-V2 runs over diffusers.*install it with `pip install flowcache\[skyreels\]`"
_HIDDEN = "import sys; sys.modules['diffusers'] = None; "  # as if it were not installed


@pytest.mark.parametrize("found", [None, ModuleType("diffusers")], ids=["missing", "too old"])
def test_the_message_names_the_extra(monkeypatch, found):
    monkeypatch.setitem(sys.modules, "diffusers", found)
    with pytest.raises(ImportError, match=MESSAGE):
        importlib.reload(skyreels)


def test_magi_and_verifying_it_do_without():
    code = _HIDDEN + (
        "from pathlib import Path; from flowcache.checkpoints import verify; from flowcache.models.magi import Magi\n"
        "Magi.from_pretrained('experiments/embedded/magi')\n"
        "print(verify(Path('experiments/embedded/magi')).all_problems())\n"
        "from flowcache.checkpoints import main; print(main(['verify', 'experiments/embedded/skyreels']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "2"]
    assert "skyreels is no checkpoint of MAGI-1, and SkyReels-V2 runs over diffusers" in done.stderr
    assert "pip install flowcache[skyreels]" in done.stderr

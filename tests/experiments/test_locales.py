"""One result in every locale: nothing is read or written in the locale's encoding, and what it lacks is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.job.paths import ROOT
from tests.experiments.test_bad_input import SMALLEST

PROMPT = "a red circle — moving é 右"  # the dash is in GBK and not in Latin-1, the accent in both
LOCALES = {"zh_CN.GBK": ("GBK", "zh_CN"), "en_US.ISO-8859-1": ("ISO-8859-1", "en_US")}


@pytest.fixture(scope="module")
def locales(tmp_path_factory) -> Path:
    """A folder of locales that few machines have, or a skip where they cannot be built."""
    folder = tmp_path_factory.mktemp("locales")
    for name, (charmap, language) in LOCALES.items():
        command = ["localedef", "-c", "-f", charmap, "-i", language, str(folder / name)]
        try:
            subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("no localedef here")
        if not (folder / name).is_dir():
            pytest.skip("localedef has no definitions here (/usr/share/i18n)")
    return folder


def said_in(locale: str, locales: Path, *arguments: str) -> str:
    """What a program prints, as the locale encodes it, once it has ended well."""
    encoding = LOCALES.get(locale, ("UTF-8",))[0]
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONUTF8", "PYTHONIOENCODING")}
    environment = {**plain, "LOCPATH": str(locales), "LC_ALL": locale, "COLUMNS": "160"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(encoding, errors="replace")
    return done.stdout.decode(encoding)


@pytest.mark.slow
def test_a_job_is_the_same_in_every_locale(tmp_path, locales):
    listed = tmp_path / "prompts.txt"
    listed.write_text(PROMPT, encoding="utf-8")
    results = tmp_path / "results"
    for place, locale in enumerate(("en_US.ISO-8859-1", "zh_CN.GBK", "C.UTF-8")):  # first, where most of it is lacking
        said = said_in(locale, locales, "run.py", *SMALLEST, f"prompts={listed}", f"output_dir={results}")
        made = place == 0
        assert f"{0 if made else 1} finished already, {1 if made else 0} video" in said
        assert len(list((results / "runs").iterdir())) == 1
    shown = {
        locale: said_in(locale, locales, "-m", "experiments.records", "list", "--output-dir", str(results))
        for locale in ("C.UTF-8", *LOCALES)
    }
    assert PROMPT in shown["C.UTF-8"]
    assert "a red circle — moving é 右" in shown["zh_CN.GBK"]
    assert "a red circle ? moving é ?" in shown["en_US.ISO-8859-1"]


@pytest.mark.slow
def test_a_job_is_made_in_a_locale_of_another_encoding(tmp_path, locales):
    listed = tmp_path / "prompts.txt"
    listed.write_text(PROMPT, encoding="utf-8")
    results = tmp_path / "results"
    said = said_in("zh_CN.GBK", locales, "run.py", *SMALLEST, f"prompts={listed}", f"output_dir={results}")
    assert "1 video to make" in said
    assert len(list(results.glob("runs/*/record.json"))) == 1

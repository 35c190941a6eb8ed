"""The code that a record depends on: what its own model, method and metrics use, and nothing else."""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent

import pytest

from eval.flow_jump import flow_jump
from eval.latent_error import latent_snr_db
from experiments.job.job import Job
from experiments.job.metrics import METRICS
from experiments.job.paths import ROOT
from experiments.records import code, new_record
from experiments.records.code import code_hash, code_version, library_hash, modules_of, modules_used, statements
from experiments.records.identity import code_modules
from experiments.records.metrics import MODULES, metric_code
from experiments.run.latents import LATENT_SNR
from experiments.run.measure import FLOW_JUMP, QUALITY
from flowcache.forecast.base import Forecast
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.method import VANILLA, Method
from tests.methods import every_k


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """An own copy of this repository's packages, that stands in for them."""
    for name in code.PACKAGES:
        shutil.copytree(
            ROOT / name,
            tmp_path / "tree" / name,
            ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")],
        )
    monkeypatch.setattr(code, "ROOT", tmp_path / "tree")
    yield tmp_path / "tree"
    forget()


def forget() -> None:
    """As in another process."""
    code._hash.cache_clear()
    code._read.cache_clear()


def change(path: Path) -> None:
    """Another program."""
    path.write_text(path.read_text(encoding="utf-8") + "\nANOTHER = 1\n", encoding="utf-8")
    forget()


def keys(job: Job) -> dict[str, str]:
    return {name: new_record(job, name, method, "a prompt").key for name, method in methods(job).items()}


def methods(job: Job) -> dict[str, Method]:
    return {"vanilla": VANILLA, job.method_name: job.method}


def test_a_new_method_and_another_methods_code_leave_a_record_as_it_is(small_job, tree):
    job, other = small_job(), small_job("method=every_k")
    before, of_other = keys(job), keys(other)["every_k"]
    (tree / "baselines" / "of_my_own.py").write_text("from flowcache.reuse.base import ReusePolicy\n", encoding="utf-8")
    change(tree / "baselines" / "every_k.py")
    change(tree / "baselines" / "uniform.py")
    change(tree / "baselines" / "sink_recent.py")
    change(tree / "flowcache" / "forecast" / "linear.py")
    change(tree / "flowcache" / "kv" / "select" / "joint.py")
    change(tree / "flowcache" / "models" / "skyreels" / "model.py")
    change(tree / "flowcache" / "__init__.py")
    change(tree / "eval" / "psnr.py")
    change(tree / "eval" / "statistics.py")
    assert keys(job) == before
    assert keys(other)["every_k"] != of_other


@pytest.mark.parametrize(
    "path",
    [
        "flowcache/sampler.py",
        "flowcache/models/magi/vae.py",
        "flowcache/reuse/chunkwise.py",
        "flowcache/forecast/hold.py",
        "flowcache/kv/policy.py",
        "eval/latency.py",
        "flowcache/trace.py",
    ],
)
def test_what_a_video_is_made_by_makes_another_record(path, small_job, tree):
    job = small_job()
    before = keys(job)
    change(tree / path)
    assert keys(job)[job.method_name] != before[job.method_name]


def test_what_a_video_is_compared_with_makes_another_record(small_job, tree, monkeypatch):
    job = small_job()
    monkeypatch.setattr("experiments.job.job.baseline_method", lambda *of: every_k(every=1, warmup_steps=0))
    before = keys(job)
    change(tree / "baselines" / "every_k.py")
    after = keys(job)
    assert after["vanilla"] != before["vanilla"]
    assert after[job.method_name] != before[job.method_name]


def test_a_loader_is_found_behind_what_passes_it_on():
    assert modules_of("flowcache.models.magi.Magi.from_pretrained") == {"flowcache.models.magi.model"}
    assert modules_of("flowcache.models.skyreels.model.SkyReels") == {"flowcache.models.skyreels.model"}
    assert modules_of("no.such.thing") == set()
    assert "flowcache.models.skyreels.model" not in modules_used(["flowcache.models.magi.model", "flowcache.sampler"])


FILES = {
    "flowcache/__init__.py": "from flowcache.parts import hold\nfrom .defines import Own\n",
    "flowcache/parts/__init__.py": (
        "from flowcache.parts.one import One as First\nfrom .two import Two\nfrom . import three\n"
    ),
    "flowcache/parts/one.py": "import math\n",
    "flowcache/parts/two.py": "def f():\n    from ..deep.down import x\n",
    "flowcache/parts/three.py": "",
    "flowcache/deep/__init__.py": "",
    "flowcache/deep/down.py": "import eval.metric as m\n",
    "flowcache/defines.py": "import torch, experiments.job.job\n",
    "eval/__init__.py": "HERE = 1\nfrom eval import metric\n",
    "eval/metric.py": "",
    "baselines/a.py": "from flowcache.parts import First",
    "baselines/b.py": "import flowcache.parts.two",
    "baselines/c.py": "from flowcache.parts import three",
    "baselines/d.py": "from eval import HERE",
    "baselines/e.py": "from flowcache import Own",
    "baselines/f.py": "import flowcache.parts",
    "baselines/g.py": "class C:\n    from flowcache.parts import *\n",
    "baselines/h.py": "from . import a",
    "baselines/i.py": "from flowcache.parts import not_there",
}
ALL_PARTS = {"flowcache.parts", "flowcache.parts.one", "flowcache.parts.two", "flowcache.parts.three"}
BELOW_TWO = {"flowcache.parts.two", "flowcache.deep.down", "eval.metric"}


@pytest.mark.parametrize(
    ("module", "used"),
    [
        ("a", {"flowcache.parts.one"}),
        ("b", BELOW_TWO),
        ("c", {"flowcache.parts.three"}),
        ("d", {"eval", "eval.metric"}),
        ("e", {"flowcache.defines"}),
        ("f", ALL_PARTS | BELOW_TWO),
        ("g", ALL_PARTS | BELOW_TWO),
        ("h", {"baselines.a", "flowcache.parts.one"}),
        ("i", ALL_PARTS | BELOW_TWO),
    ],
)
def test_imports_are_followed_as_far_as_they_are_used(module, used, tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert set(modules_used([f"baselines.{module}"], tmp_path)) == used | {f"baselines.{module}"}


def test_a_module_that_is_gone_is_another_code(tree):
    before = code_hash(["baselines.every_k"])
    (tree / "baselines" / "every_k.py").unlink()
    forget()
    assert code_hash(["baselines.every_k"]) != before


def test_somebodys_own_method_counts_though_it_is_none_of_ours(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "methods_of_mine.py").write_text("from baselines.every_k import EveryK\n", encoding="utf-8")
    before = code_hash(["methods_of_mine"])
    assert "baselines.every_k" in modules_used(["methods_of_mine"])
    change(tmp_path / "methods_of_mine.py")
    assert code_hash(["methods_of_mine"]) != before


@dataclass(kw_only=True)
class Ours(Hold):
    order: int = 1


@dataclass(kw_only=True)
class Theirs(Hold):
    order: int = 1


@dataclass(kw_only=True)
class Mixed(Hold):
    """Of parts within a part."""

    layers: tuple[Forecast, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remembered = [3]


def test_parts_are_told_apart_by_their_class_at_any_depth(small_job):
    job = small_job()
    forecasts = [Ours(), Theirs(), Ours(order=2), Mixed(layers=(Ours(), Theirs())), Mixed(layers=(Theirs(), Ours()))]
    assert len({new_record(job, "mine", Method(forecast=forecast), "a").key for forecast in forecasts}) == 5
    shared = {"quantity": None, "limit": None, "correction": 0}  # of every forecast
    assert Method(forecast=Mixed(layers=(Theirs(),))).described()["forecast"] == {
        "part": f"{__name__}.Mixed",
        **shared,
        "layers": [{"part": f"{__name__}.Theirs", **shared, "order": 1}],
    }
    modules = code_modules(job, Method(forecast=Mixed(layers=(Linear(),))))
    expected = {__name__, "flowcache.forecast.linear", "flowcache.reuse.never", "flowcache.models.magi.model"}
    assert expected <= set(modules)
    assert "flowcache.forecast.linear" not in code_modules(job, job.method)
    assert code_modules(replace(job, baseline="vanilla_kv"), Method(forecast=Ours())) == [
        *sorted({__name__, *code_modules(job, VANILLA)})
    ]


def test_every_metric_names_the_module_that_measures_it():
    assert set(MODULES) == set(METRICS)
    functions = {**QUALITY, LATENT_SNR: latent_snr_db, FLOW_JUMP: flow_jump}
    measured = {name: getattr(function, "func", function).__module__ for name, function in functions.items()}
    assert measured == {name: module for name, module in MODULES.items() if name != "caption"}


def test_a_metrics_code_is_its_own(tree):
    before = {name: metric_code(name) for name in MODULES}
    change(tree / "eval" / "psnr.py")
    changed = {name for name in MODULES if metric_code(name) != before[name]}
    assert changed == {"psnr", "psnr_frame"}
    change(tree / "eval" / "clips.py")
    assert {name for name in MODULES if metric_code(name) != before[name]} == set(MODULES) - {"latent_snr"}


def test_the_librarys_hash_is_of_every_model_and_method(tree):
    before = library_hash()
    change(tree / "baselines" / "every_k.py")
    after = library_hash()
    change(tree / "eval" / "psnr.py")
    assert (after != before, library_hash()) == (True, after)


def test_a_version_is_of_every_metric_too(tree):
    before = code_version()
    change(tree / "eval" / "psnr.py")
    after = code_version()
    change(tree / "baselines" / "every_k.py")
    assert len({before, after, code_version()}) == 3


def test_comments_docstrings_and_layout_are_no_other_code():
    plain = dedent("""
        class A:
            def f(self, x):
                return x + 1

            def g(self):
                pass
    """)
    told = dedent("""
        '''Of a module.'''

        # Why.
        class A:
            '''Of a class.'''
            def f(self, x):
                '''Of a function.'''
                return (
                    x + 1  # Why.
                )

            def g(self):
                '''Of what does nothing.'''
    """)
    assert statements(told) == statements(plain)
    assert statements(plain.replace("+ 1", "+ 2")) != statements(plain)
    assert statements("x = 'text'") != statements("x = 'other'")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = True"),
        ("x = 1", "x = 1.0"),
        ("x = '1'", "x = 1"),
        ("x = b'1'", "x = '1'"),
        ("x = 0", "x = None"),
        ("x = ''", "x = ()"),
        ("return_ = f(a, b)", "return_ = f(a)(b)"),
        ("def f():\n    return", "def f():\n    return None"),
        ("f(a)\nf(b)", "f(a, b)"),
        ("from . import a", "from .. import a"),
        ("from a import b", "from .a import b"),
        ("x: int", "(x): int"),
        ("x = f'{a}b'", "x = f'{a}' + 'b'"),
        ("x = f'{a!r}'", "x = f'{a}'"),
        ("[x async for x in y]", "[x for x in y]"),
        ("def f(a, /, b): pass", "def f(a, b): pass"),
        ("def f(*, a=1): pass", "def f(*, a): pass"),
        ("match x:\n    case True: pass", "match x:\n    case None: pass"),
        ("if a:\n    b\nelse:\n    c", "if a:\n    b\nc"),
    ],
)
def test_other_statements_are_other_code(one, other):
    assert statements(one) != statements(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 'a' 'b'", "x = 'ab'"),
        ("x = u'a'", "x = 'a'"),
        ("x = '\\x41'", "x = 'A'"),
        ("x = 0x10", "x = 16"),
        ("x = (1)", "x = 1"),
    ],
)
def test_other_spelling_is_not(one, other):
    assert statements(one) == statements(other)


SPELT_BY_VERSIONS = """
from __future__ import annotations
def f(a, /, *b, c: int = 1, **d) -> None:
    match a:
        case {"x": [1, *_], **rest} if rest: return f"{a!r:>{c}} {b = } {'n'}ested" f"{d['k']:.2f}{{}}" "and more"
        case None | True: ...
    async def g(): return [x async for x in b if (y := x)]
class C(Exception, metaclass=type):
    x: int; y: int = -1_0; z = 1e-3j, b"\\x00", ..., "é" u"ü"
    try: pass
    except* (ValueError, TypeError) as e: raise C from e
    else: del x[1:2, ::3]
with open("a") as a, open("b"): lambda *, q=0: (yield)
"""


def test_the_hash_of_statements_is_the_same_by_every_version():
    """As 3.11, 3.12 and 3.13 find it."""
    digest = hashlib.sha256(statements(SPELT_BY_VERSIONS).encode()).hexdigest()
    assert digest == "39f3f71819e886ad6cf63b62e127845c266fcf522dbbfbe506c31d17f44588da"


def test_text_does_not_depend_on_what_a_version_of_python_can_print():
    written = statements("é = 'é\\u0378\\U0001fae8'")
    text = "value='\\xe9\\u0378\\U0001fae8',"
    assert written == f"Module(body=[Assign(targets=[Name(id='\\xe9',)]{text})])"


def test_fields_that_another_version_of_python_adds_do_not_count():
    """Such as type_params (3.12) and is_lazy (3.15), which are empty in code that older versions read."""
    source = "import a\ndef f(x): return x\nclass A: pass\n"
    tree = ast.parse(source)
    for node in ast.walk(tree):
        node._fields = (*node._fields, "type_params_of_tomorrow", "is_lazy_tomorrow")
        node.type_params_of_tomorrow, node.is_lazy_tomorrow = [], 0
    written: list[str] = []
    code._write(tree, written)
    assert "".join(written) == statements(source)


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_the_locale_is_no_other_code(locale):
    program = "from experiments.records import library_hash; print(library_hash())"
    environment = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
    )
    assert told.stdout.strip() == library_hash()

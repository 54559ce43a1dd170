"""Who may import whom, and what no file may do: the rules of the house, each with a planted violation it has to catch.

The static walls read the source; the dynamic ones ask a fresh interpreter what it has really loaded.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import report_samples as samples
from mpdiag.saved import to_json

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mpdiag"
CATCH_ALL = {"utils", "util", "helpers", "helper", "core", "manager"}
LONGEST_FILE = 300
HEAVY = ("torch", "numpy", "pandas", "plotly", "rich", "scipy", "jinja2", "pynvml")

Sources = dict[str, str]  # path inside the package ("advice/from_capture.py") -> text


def sources() -> Sources:
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


# --- what a file imports


def module_of(path: str) -> str:
    """advice/checks/__init__.py -> mpdiag.advice.checks"""
    parts = ("mpdiag", *Path(path).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: str, text: str) -> Iterator[str]:
    """Every module a file names in an import, wherever it stands; `from a import b` gives a and a.b.

    Imports for type checkers alone do not run, so they do not count.
    """
    package = module_of(path) if path.endswith("__init__.py") else module_of(path).rpartition(".")[0]
    for node in _running(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _running(other)
            continue
        yield child
        yield from _running(child)


def within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def forbidden_imports(files: Sources, room: str, banned: tuple[str, ...]) -> list[str]:
    """Files of a room ("advice/") that import one of `banned`."""
    return [
        f"{path} imports {name}"
        for path, text in files.items()
        if path.startswith(room)
        for name in imports(path, text)
        if within(name, banned)
    ]


def imports_beyond(files: Sources, room: str, allowed: tuple[str, ...]) -> list[str]:
    """Files of a room that import anything but the standard library and `allowed`."""
    known = (*allowed, *sys.stdlib_module_names)
    return [
        f"{path} imports {name}"
        for path, text in files.items()
        if path.startswith(room)
        for name in imports(path, text)
        if not within(name, known) and name != "mpdiag"
    ]


def importers(files: Sources, banned: str, except_in: tuple[str, ...]) -> list[str]:
    """Files outside some places that import `banned`."""
    return [
        f"{path} imports {name}"
        for path, text in files.items()
        if not path.startswith(except_in)
        for name in imports(path, text)
        if within(name, (banned,))
    ]


ADVICE_MAY_NOT = (
    *(f"mpdiag.{room}" for room in "capture measure verify training target device report cli api".split()),
    "torch",
)
REPORT_MAY = (
    *(
        f"mpdiag.{room}"
        for room in (
            *"accuracy blocks costs diagnosis drift finding foretold loop other_formats operations scale".split(),
            *"arm_names saved histogram formats report".split(),
        )
    ),
    *"jinja2 markupsafe rich plotly".split(),
)
NUMBERS_MAY = tuple(
    f"mpdiag.{room}"
    for room in (
        *"accuracy blocks costs formats histogram drift finding foretold loop other_formats operations scale".split(),
        *"arm_names origin plan plausible version diagnosis errors advice".split(),
    )
)


def test_advice_imports_no_machine_and_no_paper():
    assert forbidden_imports(sources(), "advice/", ADVICE_MAY_NOT) == []


@pytest.mark.parametrize(
    "line",
    [
        "import torch",
        "from mpdiag.capture.run import Observation",
        "from mpdiag import verify",
        "from ..device import nvml",
        "def f():\n    import mpdiag.report.html",
    ],
)
def test_the_wall_around_advice_sees_an_import(line):
    assert len(forbidden_imports({"advice/planted.py": line}, "advice/", ADVICE_MAY_NOT)) >= 1


def test_the_wall_around_advice_lets_the_numbers_through():
    text = "from mpdiag.formats import FP16\nfrom mpdiag.advice.checks import ALL\nimport math"
    assert forbidden_imports({"advice/planted.py": text}, "advice/", ADVICE_MAY_NOT) == []


def test_an_import_for_type_checkers_alone_is_no_import():
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import json"
    assert list(imports("advice/planted.py", text)) == ["typing", "typing.TYPE_CHECKING", "json"]


def test_the_numbers_import_only_numbers():
    assert imports_beyond(sources(), "diagnosis.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "operations.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "origin.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "plan.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "plausible.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "arm_names.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "blocks.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "costs/", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "drift.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "other_formats.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "finding.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "foretold.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "loop.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "accuracy.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "saved.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "histogram.py", NUMBERS_MAY) == []
    assert imports_beyond(sources(), "formats.py", (*NUMBERS_MAY, "numpy")) == []


@pytest.mark.parametrize(
    "room",
    [
        "accuracy.py",
        "blocks.py",
        "costs/record.py",
        "diagnosis.py",
        "drift.py",
        "finding.py",
        "foretold.py",
        "loop.py",
        "other_formats.py",
        "operations.py",
        "plan.py",
        "arm_names.py",
        "plausible.py",
        "saved.py",
        "scale.py",
        "histogram.py",
        "formats.py",
    ],
)
@pytest.mark.parametrize("line", ["import torch", "import numpy", "from mpdiag.report import digest"])
def test_the_wall_around_the_numbers_sees_an_import(room, line):
    assert len(imports_beyond({room: line}, room, NUMBERS_MAY)) >= 1
    assert room in sources()


def test_the_report_imports_only_numbers_and_its_drawing_tools():
    assert imports_beyond(sources(), "report/", REPORT_MAY) == []


@pytest.mark.parametrize("line", ["from mpdiag.advice import advise", "import pandas", "from mpdiag import api"])
def test_the_wall_around_the_report_sees_an_import(line):
    assert len(imports_beyond({"report/planted.py": line}, "report/", REPORT_MAY)) >= 1


def test_capture_training_target_and_device_never_use_paper():
    paper = ("mpdiag.report", "mpdiag.cli", "mpdiag.api")
    found = [
        forbidden_imports(sources(), f"{room}/", paper)
        for room in "capture measure training target device verify".split()
    ]
    assert found == [[]] * 6


def test_only_the_main_module_imports_the_door():
    assert importers(sources(), "mpdiag.cli", except_in=("cli/", "__main__.py")) == []


def test_click_is_imported_in_the_door_alone():
    assert importers(sources(), "click", except_in=("cli/",)) == []


def test_plotly_is_imported_in_the_report_alone():
    assert importers(sources(), "plotly", except_in=("report/",)) == []


def test_nvml_is_imported_in_device_alone():
    assert importers(sources(), "pynvml", except_in=("device/",)) == []


@pytest.mark.parametrize(
    ("banned", "except_in", "line"),
    [
        ("mpdiag.cli", ("cli/", "__main__.py"), "from mpdiag.cli.main import main"),
        ("click", ("cli/",), "import click"),
        ("plotly", ("report/",), "def draw():\n    import plotly.graph_objects as go"),
        ("pynvml", ("device/",), "from pynvml import nvmlInit"),
    ],
)
def test_a_wall_around_one_module_sees_an_import(banned, except_in, line):
    assert len(importers({"verify/planted.py": line}, banned, except_in)) >= 1
    assert importers({f"{except_in[0]}planted.py": line}, banned, except_in) == []


# --- what a file does


def dotted(node: ast.expr) -> str:
    """The name of an attribute chain: torch.cuda.Event; "" for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def uses(files: Sources, chain: str, allowed: tuple[str, ...]) -> list[str]:
    """Files outside `allowed` that use an attribute chain, or import it."""
    found = importers(files, chain, allowed)
    for path, text in files.items():
        if not path.startswith(allowed):
            nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute) and dotted(n) == chain]
            found += [f"{path}:{node.lineno} uses {chain}" for node in nodes]
    return found


def calls(files: Sources, names: tuple[str, ...], allowed: tuple[str, ...]) -> list[str]:
    """Files outside `allowed` that call one of `names`."""
    return [
        f"{path}:{node.lineno} calls {dotted(node.func)}"
        for path, text in files.items()
        if not path.startswith(allowed)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and dotted(node.func) in names
    ]


PRINTING = ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write")


def test_torch_cuda_is_used_in_device_alone():
    assert uses(sources(), "torch.cuda", allowed=("device/",)) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.synchronize()",
        "with torch.cuda.stream(s): pass",
        "from torch.cuda import Event",
        "import torch.cuda",
    ],
)
def test_the_wall_around_torch_cuda_sees_a_use(line):
    assert len(uses({"verify/planted.py": line}, "torch.cuda", allowed=("device/",))) >= 1


@pytest.mark.parametrize("line", ["torch.version.cuda", "x.cuda()", "torch.backends.cuda.matmul"])
def test_the_wall_around_torch_cuda_lets_other_words_through(line):
    assert uses({"verify/planted.py": line}, "torch.cuda", allowed=("device/",)) == []


def test_only_the_door_prints():
    assert calls(sources(), PRINTING, allowed=("cli/",)) == []


@pytest.mark.parametrize("line", ["print('x')", "def f():\n    click.echo('x')", "sys.stdout.write('x')"])
def test_the_wall_around_printing_sees_a_call(line):
    assert len(calls({"report/planted.py": line}, PRINTING, allowed=("cli/",))) == 1


# --- names and sizes


def catch_alls(files: Sources) -> list[str]:
    return [
        path for path in files if CATCH_ALL & {part.strip("_").lower() for part in Path(path).with_suffix("").parts}
    ]


def shadows(files: Sources) -> list[str]:
    """Files with a top-level public function or class of their own name; importing it into the package hides them.

    cli/ is exempt: the name of a click command's function is the command's name (`mpdiag scan` is cli/scan.py's scan),
    and main.main is the entry point. Nothing re-exports them into the package, so they hide nothing.
    """
    return [
        f"{path}: {Path(path).stem}"
        for path, text in files.items()
        if not path.startswith("cli/")
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == Path(path).stem
    ]


def too_long(files: Sources) -> list[str]:
    return [f"{path}: {n} lines" for path, text in files.items() if (n := len(text.splitlines())) > LONGEST_FILE]


def test_no_file_is_a_catch_all():
    assert catch_alls(sources()) == []


@pytest.mark.parametrize("path", ["utils.py", "report/helpers.py", "core/__init__.py", "capture/_manager.py"])
def test_a_catch_all_is_seen(path):
    assert catch_alls({path: "", "report/html.py": ""}) == [path]


def test_no_public_function_has_its_modules_name():
    assert shadows(sources()) == []


def test_a_function_with_its_modules_name_is_seen():
    planted = {"verify/compare.py": "def compare():\n    pass", "formats.py": "def other():\n    def formats(): pass"}
    assert shadows(planted) == ["verify/compare.py: compare"]


@pytest.mark.parametrize("path", ["scan.py", "report/scan.py", "verify/cli/scan.py", "client/scan.py"])
def test_a_function_may_have_its_modules_name_in_the_door_alone(path):
    text = "def scan():\n    pass"
    assert shadows({"cli/scan.py": text, path: text}) == [f"{path}: scan"]


def test_nothing_of_the_door_is_re_exported_so_a_command_hides_no_module():
    assert list(imports("cli/__init__.py", sources()["cli/__init__.py"])) == []


def test_no_file_is_longer_than_three_hundred_lines():
    # formats, checks and records may grow, but a room with a file this long holds two subjects
    assert too_long(sources()) == []


def test_a_file_of_301_lines_is_too_long_and_one_of_300_is_not():
    assert too_long({"a.py": "x = 1\n" * 301, "b.py": "x = 1\n" * 300}) == ["a.py: 301 lines"]


# --- what a fresh interpreter loads


class Ran:
    """A command in a fresh interpreter: what it said, and the top-level modules it had loaded at its end."""

    def __init__(self, folder: Path, code: str, *arguments: str) -> None:
        answer = folder / "modules.json"
        note = (
            "import atexit, json, sys\n"
            f"atexit.register(lambda: open({str(answer)!r}, 'w').write(json.dumps(sorted(sys.modules))))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", note + code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        self.stdout = done.stdout
        self.modules = {name.partition(".")[0] for name in json.loads(answer.read_text())}

    def heavy(self) -> list[str]:
        return [name for name in HEAVY if name in self.modules]


MAIN = "import sys; sys.argv[0] = 'mpdiag'; from mpdiag.__main__ import main; main()"
LIGHT_MODULES = (
    "mpdiag",
    "mpdiag.formats",
    "mpdiag.histogram",
    "mpdiag.accuracy",
    "mpdiag.blocks",
    "mpdiag.diagnosis",
    "mpdiag.drift",
    "mpdiag.finding",
    "mpdiag.foretold",
    "mpdiag.loop",
    "mpdiag.other_formats",
    "mpdiag.operations",
    "mpdiag.plan",
    "mpdiag.arm_names",
    "mpdiag.plausible",
    "mpdiag.saved",
    "mpdiag.scale",
    "mpdiag.errors",
    "mpdiag.settings",
    "mpdiag.advice",
    "mpdiag.advice.checks",
    "mpdiag.api",
    *(module_of(str(path.relative_to(PACKAGE))) for path in sorted((PACKAGE / "report").glob("[a-z]*.py"))),
)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    path = tmp_path / "run.json"
    path.write_text(to_json(samples.full()))
    return str(path)


def test_the_numbers_the_paper_and_the_api_import_without_torch(tmp_path):
    ran = Ran(tmp_path, "\n".join(f"import {name}" for name in LIGHT_MODULES))
    assert len(LIGHT_MODULES) > 20
    assert "torch" not in ran.modules


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    assert Ran(tmp_path, "import mpdiag; mpdiag.__version__").heavy() == []


def test_asking_the_package_for_scan_and_diagnosis_does_not_load_torch(tmp_path):
    ran = Ran(tmp_path, "from mpdiag import scan, load, Diagnosis; print(scan.__module__, Diagnosis.__name__)")
    assert ran.stdout == "mpdiag.api Diagnosis\n"
    assert "torch" not in ran.modules


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["scan", "--help"], ["report", "--help"]])
def test_help_loads_nothing_heavy(tmp_path, words):
    ran = Ran(tmp_path, MAIN, *words)
    assert "mpdiag" in ran.stdout
    assert ran.heavy() == []


@pytest.mark.parametrize("words", [["explain"], ["explain", "MP201"]])
def test_explain_loads_nothing_heavy(tmp_path, words):
    ran = Ran(tmp_path, MAIN, *words)
    assert "MP201" in ran.stdout
    assert ran.heavy() == []


@pytest.mark.parametrize(
    ("kind", "sign"), [("text", "VERDICT"), ("md", "# mpdiag"), ("csv", "name,kind"), ("json", "{")]
)
def test_report_draws_a_saved_scan_without_torch(tmp_path, saved, kind, sign):
    ran = Ran(tmp_path, MAIN, "report", saved, "--format", kind)
    assert sign in ran.stdout
    assert "torch" not in ran.modules


def test_report_draws_a_page_without_torch(tmp_path, saved):
    ran = Ran(tmp_path, MAIN, "report", saved, "--format", "html", "--plotly", "none")
    assert "<html" in ran.stdout
    assert "torch" not in ran.modules
    assert "plotly" not in ran.modules


def test_advice_on_a_saved_scan_needs_no_torch(tmp_path, saved):
    code = (
        "import sys, mpdiag\nfrom dataclasses import replace\nfrom mpdiag.advice import advise\n"
        "seen = mpdiag.load(sys.argv[1]).capture\n"
        "tables = tuple(replace(t, abs_max_by_step=(t.abs_max or 0.0,)) for t in seen.tables)\n"
        "print(advise(replace(seen, tables=tables)).keep_fp32)"
    )
    ran = Ran(tmp_path, code, saved)
    assert ran.stdout == "('head',)\n"
    assert ran.heavy() == []


def test_a_heavy_import_in_a_fresh_interpreter_is_seen(tmp_path):
    ran = Ran(tmp_path, "import mpdiag.capture.tally")
    assert "torch" in ran.heavy()
    assert "numpy" in Ran(tmp_path, "import numpy").heavy()

"""A job whose environment has no torch imports none: start-up is most of the time of a small job."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

SCRIPTS = ROOT / "workflow_scripts"
# Packages whose import takes a second or more, and their names in the lists of environments.
HEAVY = {"torch": "torch", "transformers": "transformers", "sklearn": "scikit-learn"}
RULE = re.compile(r'"\.\./envs/(\w+)\.yaml".*?"\.\./workflow_scripts/(\S+)"', re.DOTALL)
ENVIRONMENTS = {
    script: environment
    for path in sorted((ROOT / "rules").glob("*.smk"))
    for environment, script in RULE.findall(path.read_text(encoding="utf-8"))
}
# One of each kind of light job; the others are only read.
STARTED = (
    "evaluate/check_results.py",
    "track/measure_signals.py",
    "fetch/fetch_corpus.py",
    "report/write_report.py",
)


def absent(environment: str) -> set[str]:
    """Heavy packages that an environment does not install."""
    described = yaml.safe_load((ROOT / "envs" / f"{environment}.yaml").read_text(encoding="utf-8"))
    installed = {
        requirement.partition("==")[0]
        for part in described["dependencies"]
        if isinstance(part, dict)
        for requirement in part["pip"]
    }
    return {module for module, name in HEAVY.items() if name not in installed}


def imported(body: Sequence[ast.stmt], package: str) -> Iterator[str]:
    """Modules that the statements of a module import when it is imported.

    Functions and `if TYPE_CHECKING` are left out. `package` is that of the module.
    """
    for statement in body:
        match statement:
            case ast.Import():
                yield from (alias.name for alias in statement.names)
            case ast.ImportFrom():
                above = package.split(".")[: len(package.split(".")) - statement.level + 1]
                base = ".".join([*(above if statement.level else ()), statement.module or ""])
                yield base.strip(".")
                yield from (f"{base}.{alias.name}".strip(".") for alias in statement.names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from imported(statement.orelse, package)
            case ast.If() | ast.Try() | ast.With() | ast.ClassDef():
                for part in ("body", "orelse", "finalbody"):
                    yield from imported(getattr(statement, part, []), package)
                for handler in getattr(statement, "handlers", []):
                    yield from imported(handler.body, package)


@cache
def of_file(path: Path, package: str) -> frozenset[str]:
    """Modules that a file imports at once."""
    return frozenset(imported(ast.parse(path.read_text(encoding="utf-8")).body, package))


def file_of(module: str) -> tuple[Path, str] | None:
    """File and package of a module of the project; None for other modules and for names."""
    path = SCRIPTS.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py"), module.rpartition(".")[0]
    return (path / "__init__.py", module) if (path / "__init__.py").is_file() else None


def chains(script: Path) -> dict[str, list[str]]:
    """Every package outside the project that a script imports at start, with the modules between."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    waiting = [(name, [script.name]) for name in sorted(of_file(script, ""))]
    while waiting:
        name, way = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name.partition(".")[0] != "ghosttrack":
            found.setdefault(name.partition(".")[0], way)
            continue
        parts = name.split(".")  # importing a module imports its packages, too
        for module in (".".join(parts[:size]) for size in range(1, len(parts) + 1)):
            if known := file_of(module):
                waiting += [(each, [*way, module]) for each in sorted(of_file(*known))]
    return found


def test_every_script_of_a_rule_is_found() -> None:
    named = set(
        re.findall(
            r'"\.\./workflow_scripts/(\S+\.py)"',
            "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk")),
        )
    )
    assert set(ENVIRONMENTS) == named
    assert set(STARTED) <= named


@pytest.mark.parametrize("script", sorted(ENVIRONMENTS))
def test_a_script_imports_only_what_its_environment_has(script: str) -> None:
    found = chains(SCRIPTS / script)
    wrong = {name: found[name] for name in absent(ENVIRONMENTS[script]) & set(found)}
    assert not wrong, f"imports that envs/{ENVIRONMENTS[script]}.yaml lacks: {wrong}"


def test_event_files_are_imported_only_when_one_is_written() -> None:
    assert "torch" in chains(SCRIPTS / "sae" / "train_sae.py")
    assert not [script for script in ENVIRONMENTS if "tensorboardX" in chains(SCRIPTS / script)]


def test_sklearn_is_imported_only_where_it_is_used() -> None:
    assert not [script for script in ENVIRONMENTS if "sklearn" in chains(SCRIPTS / script)]


def test_the_reading_of_imports_finds_a_chain() -> None:
    assert chains(SCRIPTS / "sae" / "train_sae.py")["torch"]
    way = chains(SCRIPTS / "detect" / "save_detector.py")["torch"]
    assert way[0] == "save_detector.py"
    assert len(way) > 1


@pytest.mark.parametrize("script", STARTED)
def test_a_light_job_starts_without_heavy_packages(script: str) -> None:
    code = (
        "import json, runpy, sys\n"
        f"runpy.run_path({str(SCRIPTS / script)!r}, run_name='script')\n"
        f"print(json.dumps(sorted(set({sorted(HEAVY)!r}) & set(sys.modules))))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout.splitlines()[-1]) == []

"""Tables and classes of the settings are checked before any job runs, without running them."""

import importlib.util
import sys
from pathlib import Path

import pytest

from ghosttrack.errors import UserError
from ghosttrack.planning import external_sources
from ghosttrack.planning.configuration import load
from ghosttrack.settings import DetectorClass, ExternalSettings
from tests.conftest import ROOT


def external(value: str) -> ExternalSettings:
    return load({"model": "tiny-gpt2", "external": value}, ROOT / "config")["tiny-gpt2"].external


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{tables: [{name: a b, path: x.csv}]}", "'a b' cannot be the name of a score"),
        ("{tables: [{name: one, pth: x.csv}]}", "did you mean external.tables.0.path"),
        ("{tables: {name: one}}", "external.tables: .* is not a list; write square brackets"),
        ("{classes: [{name: one, source: x.py}]}", "'x.py' does not name a class; expected"),
        ("{classes: [{name: one, source: 'a-b:A'}]}", "'a-b' is neither a .py file nor"),
        ("{classes: [{name: one, source: 'x.py:A', reads: [labels]}]}", "reads.0: 'labels' is not"),
        (
            "{tables: [{name: one, path: x.csv}, {name: One, path: y.csv}]}",
            "external.tables: two entries have the name One; rename one",
        ),
    ],
)
def test_wrong_settings_are_refused(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        external(value)


def test_a_class_that_reads_tracks_needs_the_tracker() -> None:
    value = "{classes: [{name: one, source: 'x.py:A', reads: [tracks]}]}"
    given = {"model": "tiny-gpt2", "external": value, "tracking": "{variants: [permuted]}"}
    with pytest.raises(UserError, match=r"one reads tracks, but tracking\.variants has no default"):
        load(given, ROOT / "config")


def test_a_class_is_found_in_its_file_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("raise SystemExit\nclass Mine: pass\n")
    found = external_sources.find(DetectorClass(name="one", source=f"{path}:Mine"))
    assert found == (path, "", "Mine")
    with pytest.raises(UserError, match=r"mine\.py has no class Yours; its classes are Mine"):
        external_sources.find(DetectorClass(name="one", source=f"{path}:Yours"))
    path.write_text("class Mine:\n  def\n")
    with pytest.raises(UserError, match=r"mine.py is not valid Python: .*line 2"):
        external_sources.find(DetectorClass(name="one", source=f"{path}:Mine"))
    path.unlink()
    with pytest.raises(UserError, match=r"external\.classes: one: source: there is no file"):
        external_sources.find(DetectorClass(name="one", source=f"{path}:Mine"))


def test_a_class_of_a_module_is_found_without_importing_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "judged_package" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text("raise SystemExit\n")
    (inner / "mine.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = external_sources.find(
        DetectorClass(name="one", source="judged_package.inner.mine:Mine")
    )
    assert found == (inner / "mine.py", "judged_package.inner.mine", "Mine")
    with pytest.raises(UserError, match=r"the module judged_package\.other is not installed"):
        external_sources.find(DetectorClass(name="one", source="judged_package.other.mine:Mine"))


@pytest.mark.parametrize(
    "text",
    [
        "class Base: pass\nMine = Base\n",
        "Mine: type = object\n",
        "try:\n    import absent\nexcept ImportError:\n    class Mine: pass\n",
        "if True:\n    from other import One as Mine\n",
        "with open('x') as Mine: pass\n",
        "from other import *\n",
        "def __getattr__(name): return object\n",
    ],
)
def test_every_statement_that_may_define_the_class_is_accepted(tmp_path: Path, text: str) -> None:
    """The job imports the file, and decides."""
    path = tmp_path / "mine_of_a_plan.py"
    path.write_text(text)
    assert external_sources.find(DetectorClass(name="one", source=f"{path}:Mine")).name == "Mine"


def test_a_class_inside_a_function_is_no_class_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine_of_a_plan.py"
    path.write_text("def make():\n    class Mine: pass\n    Other = Mine\n")
    for name in ("Mine", "Other"):
        with pytest.raises(UserError, match=f"has no class {name}; it has no class"):
            external_sources.find(DetectorClass(name="one", source=f"{path}:{name}"))


@pytest.mark.parametrize("stem", ["json", "numpy", "sys", "a.b", "__main__"])
def test_a_file_with_the_name_of_a_module_is_refused(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.py"
    path.write_text("class Mine: pass\n")
    with pytest.raises(UserError, match=r"external\.classes: one: source: .*rename the file"):
        external_sources.find(DetectorClass(name="one", source=f"{path}:Mine"))


def test_a_module_of_the_working_folder_alone_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judged_here.py").write_text("class Mine: pass\n")
    monkeypatch.chdir(tmp_path)
    chosen = DetectorClass(name="one", source="judged_here:Mine")
    for folder in ("", str(tmp_path), "."):
        monkeypatch.syspath_prepend(folder)
        with pytest.raises(UserError, match="the module judged_here is not installed"):
            external_sources.find(chosen)


def test_a_module_of_an_editable_installation_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such an installation adds a finder to sys.meta_path, and no folder to sys.path."""
    path = tmp_path / "source" / "judged_editable.py"
    path.parent.mkdir()
    path.write_text("class Mine: pass\n")

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> object:
            if name != "judged_editable":
                return None
            return importlib.util.spec_from_file_location(name, path)

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    found = external_sources.find(DetectorClass(name="one", source="judged_editable:Mine"))
    assert found == (path, "judged_editable", "Mine")


def test_a_module_of_nested_packages_without_init_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "judged_space" / "inner"
    inner.mkdir(parents=True)
    (inner / "mine.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = external_sources.find(DetectorClass(name="one", source="judged_space.inner.mine:Mine"))
    assert found.file == inner / "mine.py"


def test_a_table_that_is_missing_is_refused_with_its_key(tmp_path: Path) -> None:
    value = f"{{tables: [{{name: one, path: {tmp_path}/absent.csv}}]}}"
    with pytest.raises(UserError, match=r"external\.tables\.0\.path: there is no file"):
        external_sources.check(external(value))


def test_the_files_that_a_class_imports_from_its_folder_are_found(tmp_path: Path) -> None:
    files = {
        "mine.py": "import numpy\nfrom helper import f\nclass Mine:\n  import tools.deep.last\n",
        "helper.py": "raise SystemExit\nimport mine, broken\n",
        "broken.py": "def (\n",
        "unused.py": "",
        "tools/__init__.py": "from . import side\nfrom .deep import *\n",
        "tools/side.py": "from .. import helper\n",
        "tools/deep/__init__.py": "",
        "tools/deep/last.py": "from ..other import value\n",
        "tools/other.py": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    source = external_sources.ClassSource(tmp_path / "mine.py", "", "Mine")
    found = {path.relative_to(tmp_path).as_posix() for path in external_sources.imported(source)}
    assert found == set(files) - {"mine.py", "unused.py"}

    # Of an installed package, its own files alone.
    for file, module in (("deep/last.py", "tools.deep.last"), ("__init__.py", "tools")):
        source = external_sources.ClassSource(tmp_path / "tools" / file, module, "Mine")
        found = {
            path.relative_to(tmp_path).as_posix() for path in external_sources.imported(source)
        }
        assert "helper.py" not in found
        expected = (
            {"tools/other.py"} if "last" in file else {"tools/side.py", "tools/deep/__init__.py"}
        )
        assert expected <= found

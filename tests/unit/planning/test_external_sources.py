"""Tables and classes of the settings are checked before any job runs, without running them."""

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


def test_a_table_that_is_missing_is_refused_with_its_key(tmp_path: Path) -> None:
    value = f"{{tables: [{{name: one, path: {tmp_path}/absent.csv}}]}}"
    with pytest.raises(UserError, match=r"external\.tables\.0\.path: there is no file"):
        external_sources.check(external(value))

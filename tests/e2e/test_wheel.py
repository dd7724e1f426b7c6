"""The package as a wheel: it has all its files, and scores texts without the workflow."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, copy_house
from tests.e2e.tiny_runs import MODEL

pytestmark = pytest.mark.e2e
# Score with the files of the wheel alone: neither the repository nor the workflow can be imported.
SCORE = """
import sys
for name in ("snakemake", "sklearn", "matplotlib", "zarr", "numcodecs"):
    sys.modules[name] = None
sys.path[:0] = sys.argv[1:3]
import ghosttrack
from pathlib import Path
assert Path(ghosttrack.__file__).is_relative_to(sys.argv[1]), ghosttrack.__file__
from ghosttrack.cli import score
sys.exit(score.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from a copy of the repository, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_house(folder / "source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"),
            *("--disable-pip-version-check", "--quiet", "--wheel-dir", str(folder), str(source)),
        ],
        check=True,
        timeout=300,
    )
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "workflow_scripts"
    expected = {
        path.relative_to(package).as_posix()
        for path in (package / "ghosttrack").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    packed = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert {name for name in packed if ".dist-info/" not in name} == expected


def test_the_wheel_scores_a_text_without_the_workflow(
    wheel: Path, finished: Path, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = finished / "results" / MODEL
    result = subprocess.run(
        [
            *(sys.executable, "-I", "-c", SCORE, str(wheel), sysconfig.get_path("purelib")),
            *(str(run), "The capital of France is Paris."),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert 0 <= json.loads(result.stdout)["probability"] <= 1

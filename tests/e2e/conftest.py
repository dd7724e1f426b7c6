"""One finished run for all end-to-end tests."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import copy_house
from tests.e2e import traces
from tests.e2e.tiny_runs import launch


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A house with a finished run. Tests that change anything take a copy."""
    house = copy_house(tmp_path_factory.mktemp("finished") / "house")
    result = launch(house, before=traces.command(house.parent / "trace"))
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return house


@pytest.fixture
def house_to_change(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "house", symlinks=True))

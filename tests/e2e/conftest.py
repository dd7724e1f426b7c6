"""Finished runs that the end-to-end tests share. Tests that change anything take a copy."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import copy_house
from tests.e2e import traces
from tests.e2e.tiny_runs import launch
from tests.e2e.waves import arguments, limited, run_and_watch


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A house with a finished run."""
    house = copy_house(tmp_path_factory.mktemp("finished") / "house")
    result = launch(house, before=traces.command(house.parent / "trace"))
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return house


@pytest.fixture
def house_to_change(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "house", symlinks=True))


@pytest.fixture(scope="session")
def three_at_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A house whose SAEs are trained in two waves of three layers; its screen, and the most disk that was in use."""
    house = copy_house(tmp_path_factory.mktemp("three") / "house")
    code, screen, peak = run_and_watch(house, *arguments(limited(3)))
    assert code == 0, screen[-4000:]
    return house, screen, peak

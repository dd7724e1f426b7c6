"""The image definitions use the lock file and the Python version of the project, and files that exist."""

import re
import shlex

import pytest
import yaml

from tests.conftest import ROOT

ENVS = ROOT / "envs"
LOCK = ENVS / "requirements.txt"
DOCKER = (ENVS / "Dockerfile").read_text(encoding="utf-8")
APPTAINER = (ENVS / "apptainer.def").read_text(encoding="utf-8")
# Base image, and the files that are copied: path in the clone -> path in the image. Docker's folder
# of files is envs/, Apptainer's the clone.
BASES = {
    "docker": re.findall(r"^FROM (\S+)$", DOCKER, re.MULTILINE),
    "apptainer": re.findall(r"^From: (\S+)$", APPTAINER, re.MULTILINE),
}
COPIED = {
    "docker": {
        f"envs/{source}": target
        for source, target in re.findall(r"^COPY (\S+) (\S+)$", DOCKER, re.MULTILINE)
    },
    "apptainer": dict(
        map(str.split, APPTAINER.partition("%files\n")[2].partition("\n\n")[0].splitlines())
    ),
}
KINDS = ("docker", "apptainer")


def install(kind: str) -> list[str]:
    """Words of the one pip command."""
    text = (DOCKER if kind == "docker" else APPTAINER).replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if " pip install" in line]
    return shlex.split(line.strip().removeprefix("RUN "))


@pytest.mark.parametrize("kind", KINDS)
def test_the_python_version_is_that_of_the_lock_file_and_of_ci(kind: str) -> None:
    (version,) = re.findall(r"^# Python ([\d.]+)\.", LOCK.read_text(encoding="utf-8"))
    assert BASES[kind] == [f"python:{version}-slim"]
    for workflow in ("check", "test", "e2e"):
        path = ROOT / ".github" / "workflows" / f"{workflow}.yml"
        assert f'python-version: "{version}"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_every_copied_path_exists_and_pip_installs_the_lock_file_alone(kind: str) -> None:
    assert COPIED[kind]
    assert all((ROOT / path).is_file() for path in COPIED[kind])
    words = install(kind)
    assert words[:4] == ["python", "-m", "pip", "install"]
    assert words[words.index("--requirement") + 1] == COPIED[kind]["envs/requirements.txt"]
    options = [word for word in words[4:] if word.startswith("-")]
    assert len(words[4:]) == len(options) + 2  # the index and the lock file; no loose package


@pytest.mark.parametrize("kind", KINDS)
def test_the_entry_point_is_the_one_of_make_run(kind: str) -> None:
    entry = (
        yaml.safe_load(re.findall(r"^ENTRYPOINT (.*)$", DOCKER, re.MULTILINE)[0])
        if kind == "docker"
        else shlex.split(re.findall(r"^\s+exec (.*) \"\$@\"$", APPTAINER, re.MULTILINE)[0])
    )
    assert entry == ["python", "-m", "ghosttrack.cli.launch"]
    assert " -m ghosttrack.cli.launch " in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_both_definitions_install_the_same_torch_and_ci_builds_both() -> None:
    (docker,) = re.findall(r"^ARG TORCH_INDEX=(\S+)$", DOCKER, re.MULTILINE)
    (apptainer,) = re.findall(r"^\s+torch_index=(\S+)$", APPTAINER, re.MULTILINE)
    assert docker == apptainer
    assert '"$TORCH_INDEX"' in DOCKER
    assert '"{{ torch_index }}"' in APPTAINER
    assert re.search(r"^torch==2\.13\.0$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    jobs = yaml.safe_load(
        (ROOT / ".github" / "workflows" / "container.yml").read_text(encoding="utf-8")
    )["jobs"]
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    assert "docker build -t ghosttrack envs" in commands
    assert "apptainer build ghosttrack.sif envs/apptainer.def" in commands

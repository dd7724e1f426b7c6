"""What a job's result depends on: a digest of its code, and the settings that this code reads.

Both are rule params, so an edit reruns exactly the rules that use it. Comments, docstrings,
formatting and plumbing (logging, job binding, file helpers) are not part of the digest.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.runtime import files

PACKAGE = Path(__file__).resolve().parents[1]
SCRIPTS = PACKAGE.parent
# Rooms that decide how a job runs and what it says, never what it computes.
NOT_IN_DIGEST = frozenset({"runtime", "settings", "planning", "cli", "errors", "sae.speed"})
# Parsed sources of an earlier process, by name, size and date.
MEMORY = Path(".snakemake") / "ghosttrack_sources.json"
# Packages whose version may change a result; recorded beside it.
LIBRARIES = (
    "torch",
    "transformers",
    "zarr",
    "numcodecs",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "scikit-network",
    "snakemake",
)


class Source(NamedTuple):
    """Digest of one file's syntax tree, the attribute names it mentions, and the modules it imports."""

    digest: str
    names: frozenset[str]
    imports: tuple[str, ...]


def source_digest(script: str, *data: str) -> str:
    """16 hex digits over a script, the package modules that it reaches, and package `data` paths.

    Args:
        script: rule name; its script is workflow_scripts/PHASE/`script`.py.
        data: files or folders inside the package whose bytes count too, such as "templates".
    """
    total = hashlib.sha256()
    for path in _closure(script):
        total.update(_source(path).digest.encode())
    for name in data:
        place = PACKAGE / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and "__pycache__" not in path.parts:
                total.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:16]


@cache
def script_of(rule: str) -> Path:
    """Script of a rule: the one file of its name in the folders of the phases."""
    (found,) = SCRIPTS.glob(f"*/{rule}.py")
    return found


def used_settings(script: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `values` whose keys the script or its modules mention, as attribute or name.

    A key that no line of a rule's code reads cannot change its result, so it is kept out of the
    rule's params: adding a settings key reruns nothing until some code uses it.
    """
    names = frozenset[str]().union(*(_source(path).names for path in _closure(script)))
    return {key: value for key, value in values.items() if key in names}


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _closure(script: str) -> tuple[Path, ...]:
    start = script_of(script)
    seen: dict[Path, None] = {start: None}
    waiting = [start]
    while waiting:
        for path in _imported_files(waiting.pop()):
            if path not in seen:
                seen[path] = None
                waiting.append(path)
    return (start, *sorted(path for path in seen if path != start))


@cache
def _imported_files(path: Path) -> tuple[Path, ...]:
    return tuple(_module_files(_source(path).imports))


def _module_files(imports: tuple[str, ...]) -> Iterator[Path]:
    for name in imports:
        parts = name.split(".")[1:]
        if not parts or not NOT_IN_DIGEST.isdisjoint({parts[0], ".".join(parts[:2])}):
            continue
        for depth in range(1, len(parts) + 1):
            place = PACKAGE.joinpath(*parts[:depth])
            if place.with_suffix(".py").is_file():
                yield place.with_suffix(".py")
            elif (place / "__init__.py").is_file():
                yield place / "__init__.py"


@cache
def _source(path: Path) -> Source:
    known = _remembered(Path.cwd() / MEMORY)
    if (key := _key(path)) not in known:
        known[key] = _parse(path)
    return known[key]


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


@cache
def _remembered(memory: Path) -> dict[str, Source]:
    """Sources that an earlier process parsed: a Slurm job reads the Snakefile twice, and parsing takes half a second."""
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
        return {
            key: Source(digest, frozenset(names), tuple(imports))
            for key, (digest, names, imports) in found.items()
        }
    except (OSError, ValueError, TypeError):
        return {}


def remember() -> None:
    """Keep what was parsed for the next process that starts in this folder; a folder that cannot be written is left alone."""
    memory = Path.cwd() / MEMORY
    known = _remembered(memory)
    try:
        places = {key: Path(key.rsplit(" ", 2)[0]) for key in known}
        present = {
            key: known[key]
            for key, place in places.items()
            if place.exists() and key == _key(place)
        }
        content = {
            key: (each.digest, sorted(each.names), each.imports)
            for key, each in sorted(present.items())
        }
        if (
            not memory.exists()
            or json.loads(memory.read_text(encoding="utf-8")).keys() != content.keys()
        ):
            with files.atomic_write(memory) as stream:
                json.dump(content, stream)
    except (OSError, ValueError):
        return


_NAMED = (ast.arg, ast.keyword)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _parse(path: Path) -> Source:
    """Read one file's syntax tree in one pass: `ast.dump` and `ast.walk` take four times as long."""
    words: list[str] = []
    names: set[str] = set()
    imports: list[str] = []

    def read(node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, _NAMED):
            names.add(node.arg or "")
        elif isinstance(node, ast.Import):
            imports.extend(
                item.name for item in node.names if item.name.split(".")[0] == "ghosttrack"
            )
        elif isinstance(node, ast.ImportFrom):
            imports.extend(_imported(node, path))
        elif isinstance(node, _DOCUMENTED):
            _drop_docstring(node)
        words.append(node.__class__.__name__)
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, ast.AST):
                read(value)
            elif isinstance(value, list):
                words.append("[")
                for item in value:
                    if isinstance(item, ast.AST):
                        read(item)
                    else:
                        words.append(repr(item))
                words.append("]")
            else:
                words.append(repr(value))

    read(ast.parse(path.read_text(encoding="utf-8")))
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()
    return Source(digest, frozenset(names), tuple(sorted(set(imports))))


def _imported(node: ast.ImportFrom, path: Path) -> list[str]:
    base = node.module or ""
    if node.level:
        inside = path.parent.relative_to(PACKAGE.parent).parts
        base = ".".join([*inside[: len(inside) - node.level + 1], *filter(None, [node.module])])
    if base.split(".")[0] != "ghosttrack":
        return []
    return [f"{base}.{item.name}" for item in node.names]


def _drop_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    match node.body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            node.body = rest

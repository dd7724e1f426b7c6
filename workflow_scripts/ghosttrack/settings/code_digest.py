"""What a rule's results depend on: a digest of its code, and the settings that this code reads.

Both are params of the rule, so an edit reruns exactly the rules that use it. The digest does not
cover comments, docstrings, formatting, or modules without influence on results (logging, job
binding, file helpers).
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
# Subpackages and modules that determine how a job runs and what it logs, never its results.
NOT_IN_DIGEST = frozenset({"runtime", "settings", "planning", "cli", "errors", "sae.speed"})
# Cache of parsed sources between processes; keys are path, size, inode and times. The time of the
# last change (ctime) cannot be set: `cp -p`, `rsync -a` and archives keep modification times.
CACHE = Path(".snakemake") / "ghosttrack_sources.json"


class ParsedSource(NamedTuple):
    """Digest of one file's syntax tree, its attribute names, and the modules that it imports."""

    digest: str
    names: frozenset[str]
    imports: tuple[str, ...]


def source_digest(script: str, *data: str) -> str:
    """Digest (16 hex digits) of a rule's script, the package modules it imports, and `data`.

    Args:
        script: name of the rule, whose script is workflow_scripts/PHASE/`script`.py.
        data: files or folders in the package whose content is included, such as "templates".
    """
    total = hashlib.sha256()
    for path in _closure(script):
        total.update(_source(path).digest.encode())
    for name in data:
        root = PACKAGE / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and "__pycache__" not in path.parts:
                total.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    digest = total.hexdigest()[:16]
    _first[script, *data] = _first.get((script, *data), digest)
    return digest


# The first digest of each script and its data in this process.
_first: dict[tuple[str, ...], str] = {}


def edited_digests() -> frozenset[str]:
    """Digests that `source_digest` gave first in this process, and that are out of date now."""
    for function in (script_of, _closure, _imported_files, _source, _read_cache):
        function.cache_clear()
    edited = set()
    for (script, *data), digest in list(_first.items()):
        try:
            same = source_digest(script, *data) == digest
        except (OSError, ValueError, SyntaxError):  # in the middle of an edit
            same = False
        if not same:
            edited.add(digest)
    return frozenset(edited)


@cache
def script_of(rule: str) -> Path:
    """Script of a rule: the file PHASE/`rule`.py."""
    (script,) = SCRIPTS.glob(f"*/{rule}.py")
    return script


def used_settings(script: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The items of `values` whose keys occur in the rule's code, as attribute, argument or keyword.

    Code cannot depend on a key that it never names, so that key is not among the rule's params: a
    new setting reruns nothing until code uses it.
    """
    names = frozenset[str]().union(*(_source(path).names for path in _closure(script)))
    return {key: value for key, value in values.items() if key in names}


def imports_at_start(rule: str, module: str) -> bool:
    """Whether a rule's script imports a module at its start, itself or through our modules.

    Raises:
        ValueError: no script has this name.
    """
    seen, waiting = set[Path](), [script_of(rule)]
    while waiting:
        path = waiting.pop()
        imports = _start_imports(path)
        if any(f"{name}.".startswith(f"{module}.") for name in imports):
            return True
        seen.add(path)
        waiting.extend(file for file in _module_files(imports) if file not in seen)
    return False


@cache
def _start_imports(path: Path) -> tuple[str, ...]:
    """Modules and names that a file imports outside its functions."""
    imports: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            imports.extend(item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.extend(_imported(node, path) or [node.module or ""])
    return tuple(imports)


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
            path = PACKAGE.joinpath(*parts[:depth])
            if path.with_suffix(".py").is_file():
                yield path.with_suffix(".py")
            elif (path / "__init__.py").is_file():
                yield path / "__init__.py"


@cache
def _source(path: Path) -> ParsedSource:
    known = _read_cache(Path.cwd() / CACHE)
    if (key := _key(path)) not in known:
        known[key] = _parse(path)
    return known[key]


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"


@cache
def _read_cache(cache: Path) -> dict[str, ParsedSource]:
    """Sources parsed by earlier processes; to parse them again takes 0.5 s per process."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        return {
            key: ParsedSource(digest, frozenset(names), tuple(imports))
            for key, (digest, names, imports) in content.items()
        }
    except (OSError, ValueError, TypeError):
        return {}


def write_cache() -> None:
    """Write the parsed sources for later processes in this folder, if the folder is writable."""
    cache = Path.cwd() / CACHE
    known = _read_cache(cache)
    try:
        paths = {key: Path(key.rsplit(" ", 4)[0]) for key in known}
        content = {
            key: (known[key].digest, sorted(known[key].names), known[key].imports)
            for key, path in sorted(paths.items())
            if path.exists() and key == _key(path)
        }
        if (
            not cache.exists()
            or json.loads(cache.read_text(encoding="utf-8")).keys() != content.keys()
        ):
            with files.atomic_write(cache) as stream:
                json.dump(content, stream)
    except (OSError, ValueError):
        return


_NAMED = (ast.arg, ast.keyword)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _parse(path: Path) -> ParsedSource:
    """Parse a file in one pass, in a quarter of the time of `ast.dump` and `ast.walk`."""
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
    return ParsedSource(digest, frozenset(names), tuple(sorted(set(imports))))


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

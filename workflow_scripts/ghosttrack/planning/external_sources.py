"""Files of detectors from outside this project: score tables and Python classes."""

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs import file_kinds, modules, rows
from ghosttrack.planning.configuration import reachable
from ghosttrack.settings import DetectorClass, ExternalSettings


class ClassSource(NamedTuple):
    """Where a class is: its file, the module to import ("" for a file), and its name."""

    file: Path
    module: str
    name: str


def check(external: ExternalSettings) -> None:
    """Check that all tables and classes exist, without running any code of the user.

    Raises:
        UserError: with the key and the remedy.
    """
    for number, table in enumerate(external.tables):
        key = f"external.tables.{number}.path"
        with reachable(key):
            if reason := rows.refusal(Path(table.path)):
                raise UserError(f"{key}: {reason}")
    for chosen in external.classes:
        find(chosen)


def find(chosen: DetectorClass) -> ClassSource:
    """The file of a class.

    Raises:
        UserError: there is no such file or module, or a .py file does not define the class.
    """
    key = f"external.classes: {chosen.name}: source"
    place, _, name = chosen.source.rpartition(":")
    with reachable(key):
        if not place.endswith(".py"):
            return ClassSource(_module_file(place, key), place, name)
        if reason := file_kinds.not_a_file(Path(place)):
            raise UserError(f"{key}: {reason}; expected a Python file with the class {name}")
        _require_class(Path(place), name, key)
    return ClassSource(Path(place), "", name)


def imported(source: ClassSource) -> list[Path]:
    """Python files that the file of a class imports from its folder, or from its package.

    They are found without running any code: imports by computed names are not among them, and
    neither are other packages.
    """
    root = source.file.parent
    for _ in source.module.split(".")[: -1 if source.file.name != "__init__.py" else None]:
        root = root.parent
    package = source.module.partition(".")[0]
    seen: dict[Path, None] = {source.file: None}
    waiting = [source.file]
    while waiting:
        path = waiting.pop()
        for name in _imports(path, root):
            if package and name[0] != package:
                continue
            for file in _files_of(root, name):
                if file not in seen:
                    seen[file] = None
                    waiting.append(file)
    return sorted(path for path in seen if path != source.file)


def _imports(path: Path, root: Path) -> Iterator[tuple[str, ...]]:
    """The parts of the names that a file imports, relative to `root`; none if it is not Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                yield tuple(item.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = list(path.parent.relative_to(root).parts) if node.level else []
            base = base[: len(base) - node.level + 1] if node.level else base
            base += node.module.split(".") if node.module else []
            for item in node.names:
                yield (*base, item.name)


def _files_of(root: Path, name: Sequence[str]) -> Iterator[Path]:
    """The files that an import of `name` runs: of each package on the way, and of the module."""
    for depth in range(1, len(name) + 1):
        path = root.joinpath(*name[:depth])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                yield file


def _require_class(path: Path, name: str, key: str) -> None:
    """Check that a file is Python, has a name that can be imported, and may define `name`."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{key}: {path} is not valid Python: {reason}") from None
    if reason := modules.name_refusal(path):
        raise UserError(f"{key}: {reason}")
    bound = set(_bound(tree))
    if not bound & {name, "*", "__getattr__"}:
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        found = f"its classes are {', '.join(classes)}" if classes else "it has no class"
        raise UserError(f"{key}: {path} has no class {name}; {found}")


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a module may define, also by assignments, imports and in `if` or `try`."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner.name
        elif isinstance(inner, ast.alias):
            yield inner.asname or inner.name.partition(".")[0]
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        else:
            yield from _bound(inner)


def _module_file(module: str, key: str) -> Path:
    """The file of a module, without importing its packages."""
    searched: list[str] | None = None
    origin = ""
    for depth in range(1, len(module.split(".")) + 1):
        part = ".".join(module.split(".")[:depth])
        found = modules.find(part, searched)
        if found is None or (not found.origin and not found.submodule_search_locations):
            raise UserError(
                f"{key}: the module {part} is not installed in this environment "
                f"({sys.prefix}); install it, or name a file, as in path/to/file.py:CLASS"
            )
        searched, origin = modules.folders_of(found, searched), found.origin or ""
    if not origin.endswith(".py"):
        raise UserError(f"{key}: {module} is no Python file; name the module with the class")
    return Path(origin)

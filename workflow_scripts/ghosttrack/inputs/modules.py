"""Python modules of the environment, found without importing them."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def search_path() -> list[str]:
    """The folders of `sys.path` without the working folder, as absolute paths.

    The working folder is on the path of some programs only, so a module there is not installed.
    """
    here = Path.cwd()
    folders = [here / folder for folder in sys.path if folder]
    return [str(folder) for folder in folders if folder.resolve() != here.resolve()]


def find(name: str, searched: Sequence[str] | None = None) -> ModuleSpec | None:
    """The specification of a module by the finders of `import`, or None.

    Args:
        name: full name, such as package.module.
        searched: folders of its package; None for a module without a package.
    """
    folders = search_path() if searched is None else list(searched)
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is None:
            continue
        found: ModuleSpec | None
        try:
            found = find_spec(name, folders)
        except KeyError:  # a package without __init__.py, in a package that is not imported
            found = PathFinder.find_spec(name.rpartition(".")[2], folders)
        if found is not None:
            return found
    return None


def folders_of(package: ModuleSpec, searched: Sequence[str] | None = None) -> list[str]:
    """The folders of a package; `searched`: the folders in which `find` found it."""
    if package.origin is None:  # a package without __init__.py, which has no list before its import
        last = package.name.rpartition(".")[2]
        places = [Path(folder) / last for folder in searched or search_path()]
        if here := [str(place) for place in places if place.is_dir()]:
            return here
    return list(package.submodule_search_locations or [])


def name_refusal(file: Path) -> str:
    """Why a Python file cannot be imported under its name, or ""."""
    name = file.stem
    if "." in name or name.startswith("__"):
        return f"{file.name} cannot be imported under this name: rename the file"
    if name in sys.builtin_module_names:
        return f"{file.name} has the name of a module of Python: rename the file"
    own = file.resolve().parent
    found = find(name, [folder for folder in search_path() if Path(folder).resolve() != own])
    if found is None or found.origin is None:
        return ""
    if found.has_location and Path(found.origin).resolve() == file.resolve():
        return ""
    return f"{file.name} has the name of the installed module {name}: rename the file"

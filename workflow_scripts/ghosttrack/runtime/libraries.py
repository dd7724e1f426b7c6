"""Installed versions of the libraries that results depend on."""

import contextlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

# Packages whose version may change a result; every record and saved detector has the versions.
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
NOT_RECORDED = "(not recorded)"


@cache
def versions() -> Mapping[str, str]:
    """Installed version of each library, by name; a library that is not installed is left out."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return MappingProxyType(found)


def together(recorded: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """All versions of each library in several records, sorted as text.

    Returns:
        name of a library -> its versions, or NOT_RECORDED for a record without any; more than one
        if results of a run differ in theirs.
    """
    all_versions: dict[str, set[str]] = {}
    for record in recorded:
        for name, one in (record or dict.fromkeys(LIBRARIES, NOT_RECORDED)).items():
            all_versions.setdefault(name, set()).add(one)
    return {name: sorted(all_versions[name]) for name in LIBRARIES if name in all_versions}

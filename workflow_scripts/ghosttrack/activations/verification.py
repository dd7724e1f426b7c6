"""Verification of all stores against their manifests; reports all damage, not only the first."""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.activations.reader import ActivationStore, remedy
from ghosttrack.errors import UserError
from ghosttrack.runtime import files, progress

# Folders with stores below a model's folder. The training stores of a layer share one folder.
TRAINING, SINGLE = "activations/layer_*", ("heldout", "examples/*")


class Group(NamedTuple):
    """The stores of one layer; stores or manifests may be missing on disk."""

    line: str  # of the table
    stores: list[Path]
    manifests: list[Path]
    whole: bool  # whether all rows of the layer must be there


class Finding(NamedTuple):
    """Result for one group: sizes by its manifests, and one sentence per damaged store."""

    line: str
    stores: int
    rows: int
    total_rows: int
    bytes: int
    seconds: float
    problems: list[str]


def groups(home: Path) -> list[Group]:
    """All groups of stores below a model's folder, in a fixed order."""
    result = [
        _group(home, folder, stems, whole=False)
        for folder in sorted(home.glob(TRAINING))
        if (stems := _stems(folder))
    ]
    for pattern in SINGLE:
        for folder in sorted(home.glob(pattern)):
            result += [_group(home, folder, [stem], whole=True) for stem in _stems(folder)]
    return result


def _stems(folder: Path) -> list[str]:
    return sorted({path.stem for pattern in ("*.zarr", "*.json") for path in folder.glob(pattern)})


def _group(home: Path, folder: Path, stems: Sequence[str], *, whole: bool) -> Group:
    stores, manifests = (
        [folder / f"{stem}.{ending}" for stem in stems] for ending in ("zarr", "json")
    )
    return Group(folder.relative_to(home).as_posix(), stores, manifests, whole)


def check(group: Group) -> Finding:
    """Verify every byte of a group's stores; reports damage instead of raising an error."""
    began = time.monotonic()
    contents: list[Mapping[str, Any]] = []
    problems = []
    for store, manifest in zip(group.stores, group.manifests, strict=True):
        try:
            contents.append(_content(store, manifest))
        except (UserError, OSError) as error:
            problems.append(str(error))
    rows = sum(int(content["rows"]) for content in contents)
    total = max((int(content["total_rows"]) for content in contents), default=0)
    try:
        # A disk budget deletes training stores one by one; the rest are then verified singly.
        if not problems and (group.whole or rows >= total):
            ActivationStore.open(group.stores, group.manifests).verify()
        else:
            problems += _damaged_files(group)
    except (UserError, OSError, ValueError, LookupError) as error:
        # The reader stops at the first damage.
        problems += _damaged_files(group) or [str(error)]
    size = sum(int(entry["bytes"]) for content in contents for entry in content["files"].values())
    return Finding(group.line, len(contents), rows, total, size, time.monotonic() - began, problems)


def _content(store: Path, manifest: Path) -> Mapping[str, Any]:
    if not manifest.exists():
        raise UserError(f"{store}: its manifest is missing; {remedy(store, manifest)}")
    if not store.exists():
        raise UserError(f"{manifest}: its store is missing; {remedy(store, manifest)}")
    content = files.read_json(manifest)
    try:
        sizes = [entry["bytes"] for entry in content["files"].values() if entry["sha256"]]
        fits = all(
            isinstance(value, int) for value in (content["rows"], content["total_rows"], *sizes)
        )
    except (AttributeError, KeyError, TypeError):
        fits = False
    if not fits:
        raise UserError(
            f"{manifest}: it is not the manifest of an activation store; {remedy(store, manifest)}"
        )
    return dict(content)


def _damaged_files(group: Group) -> list[str]:
    """One sentence per damaged store of the group, from sizes and SHA-256 of its files."""
    problems = []
    for store, manifest in zip(group.stores, group.manifests, strict=True):
        try:
            content = _content(store, manifest)
            problems += [*_damage(store, manifest, content)][:1]
        except (UserError, OSError):
            continue  # already reported
    return problems


def _damage(store: Path, manifest: Path, content: Mapping[str, Any]) -> Iterator[str]:
    what_to_do = remedy(store, manifest)
    for name, entry in content["files"].items():
        path = store / name
        if not path.is_file():
            yield f"{path}: the file is missing; {what_to_do}"
        elif (size := path.stat().st_size) != entry["bytes"]:
            yield f"{path}: it has {size} bytes, its manifest says {entry['bytes']}; {what_to_do}"
        elif files.sha256_file(path) != entry["sha256"]:
            yield f"{path}: its SHA-256 is not the one in the manifest; {what_to_do}"


def abandoned(home: Path) -> list[Path]:
    """Unfinished stores below a model's folder that no running process is writing."""
    return [
        path
        for pattern in (TRAINING, *SINGLE)
        for path in sorted(home.glob(f"{pattern}/*.partial"))
        if path.is_dir() and not files.locked(path)
    ]


def lost(promised: Sequence[Path]) -> list[str]:
    """One sentence per folder from which stores are missing together with their manifests.

    `check` reports stores of which only one of the two is missing.

    Args:
        promised: manifests that must exist.
    """
    gone: dict[Path, list[Path]] = {}
    for manifest in promised:
        if not manifest.exists() and not manifest.with_suffix(".zarr").exists():
            gone.setdefault(manifest.parent, []).append(manifest)
    return [
        f"{folder}: {', '.join(path.stem for path in manifests)} and "
        f"{'its manifest' if len(manifests) == 1 else 'their manifests'} are missing, though later "
        "results exist that need them, and no disk budget allows their deletion (if the run had "
        "one, give it: --config 'activations={disk_budget_gb: N}'). To write them again: snakemake "
        "--profile YOURS " + " ".join(map(str, manifests))
        for folder, manifests in gone.items()
    ]


def released(layers: Sequence[Path]) -> list[str]:
    """One sentence per folder of training stores that a disk budget allows to delete.

    Args:
        layers: folders of training activations whose SAEs are trained.
    """
    sentences = []
    for folder in layers:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size:
            sentences.append(
                f"{folder}: {progress.amount(size)} of training activations whose SAE is trained, "
                f"left by a repair under a disk budget; when no job is running, delete them: rm -r "
                f"{folder}"
            )
    return sentences


def as_table(findings: Sequence[Finding]) -> str:
    """Aligned table with one line per folder of stores, and one for all; GB are 10^9 bytes."""
    lines = [_sum(line, [*same]) for line, same in groupby(findings, lambda one: one.line)]
    width = max(len(line) for line in ("stores of", *(one.line for one in lines)))
    rows = [f"{'stores of':<{width}} {'stores':>6} {'rows':>11} {'GB':>8} {'GB/s':>6}  state"]
    for one in (*lines, _sum("all", findings)):
        rate = one.bytes / 1e9 / max(one.seconds, 1e-9)
        rows.append(
            f"{one.line:<{width}} {one.stores:>6} {one.rows:>11,} {one.bytes / 1e9:>8.3f} "
            f"{rate:>6.2f}  {_state(one)}"
        )
    return "\n".join(rows)


def _sum(line: str, findings: Sequence[Finding]) -> Finding:
    return Finding(
        line,
        sum(one.stores for one in findings),
        sum(one.rows for one in findings),
        sum(one.total_rows for one in findings),
        sum(one.bytes for one in findings),
        sum(one.seconds for one in findings),
        [problem for one in findings for problem in one.problems],
    )


def _state(finding: Finding) -> str:
    if finding.problems:
        return f"{len(finding.problems)} DAMAGED"
    return (
        "intact"
        if finding.rows == finding.total_rows
        else f"intact; {finding.total_rows:,} rows when complete"
    )

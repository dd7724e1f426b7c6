"""Checking whole stores against their manifests: all that is damaged is found, not only the first."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.activations.reader import ActivationStore, remedy
from ghosttrack.errors import UserError
from ghosttrack.runtime import files, progress

# Below a model's folder: one layer's training stores share a folder, the others stand for themselves.
TRAINING, SINGLE = "activations/layer_*", ("heldout", "examples/*")


class Group(NamedTuple):
    """Stores that are one layer together, and the line of the table they count in; a store or its manifest may be absent."""

    line: str
    stores: list[Path]
    manifests: list[Path]
    whole: bool  # whether some of the layer's rows may not be absent


class Finding(NamedTuple):
    """What was found of one group: what its manifests promise, seconds spent, and a sentence for each damaged store."""

    line: str
    stores: int
    rows: int
    total_rows: int
    bytes: int
    seconds: float
    problems: list[str]


def groups(home: Path) -> list[Group]:
    """Every group of stores below a model's folder, in a fixed order."""
    found = [
        _group(home, folder, stems, whole=False)
        for folder in sorted(home.glob(TRAINING))
        if (stems := _stems(folder))
    ]
    for pattern in SINGLE:
        for folder in sorted(home.glob(pattern)):
            found += [_group(home, folder, [stem], whole=True) for stem in _stems(folder)]
    return found


def _stems(folder: Path) -> list[str]:
    return sorted({path.stem for pattern in ("*.zarr", "*.json") for path in folder.glob(pattern)})


def _group(home: Path, folder: Path, stems: Sequence[str], *, whole: bool) -> Group:
    stores, manifests = (
        [folder / f"{stem}.{ending}" for stem in stems] for ending in ("zarr", "json")
    )
    return Group(folder.relative_to(home).as_posix(), stores, manifests, whole)


def check(group: Group) -> Finding:
    """Read every byte of a group's stores and hold it against the manifests; never raises for damage."""
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
        # Stores that a disk budget lets go one by one are checked one by one.
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
        raise UserError(f"{store}: no manifest vouches for it; {remedy(store, manifest)}")
    if not store.exists():
        raise UserError(f"{manifest}: its store is gone; {remedy(store, manifest)}")
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
    """The first damage of each store of the group, by size and SHA-256 of its files."""
    found = []
    for store, manifest in zip(group.stores, group.manifests, strict=True):
        try:
            content = _content(store, manifest)
            found += [*_damage(store, manifest, content)][:1]
        except (UserError, OSError):
            continue  # already reported
    return found


def _damage(store: Path, manifest: Path, content: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in content["files"].items():
        path = store / name
        if not path.is_file():
            yield f"{path}: the file is missing; {remedy(store, manifest)}"
        elif path.stat().st_size != entry["bytes"]:
            yield f"{path}: it has {path.stat().st_size} bytes, its manifest says {entry['bytes']}; {remedy(store, manifest)}"
        elif files.sha256_file(path) != entry["sha256"]:
            yield f"{path}: its SHA-256 is not the one in the manifest; {remedy(store, manifest)}"


def abandoned(home: Path) -> list[Path]:
    """Unfinished stores below a model's folder that no live process is writing."""
    found = [
        path
        for pattern in (TRAINING, *SINGLE)
        for path in sorted(home.glob(f"{pattern}/*.partial"))
    ]
    return [path for path in found if path.is_dir() and not files.locked(path)]


def lost(promised: Sequence[Path]) -> list[str]:
    """A sentence for each folder from which stores are gone together with their manifests; `promised` are manifests.

    Where only one of the two is gone, `check` says so.
    """
    gone: dict[Path, list[Path]] = {}
    for manifest in promised:
        if not manifest.exists() and not manifest.with_suffix(".zarr").exists():
            gone.setdefault(manifest.parent, []).append(manifest)
    return [
        f"{folder}: {', '.join(path.stem for path in manifests)} and {'its manifest' if len(manifests) == 1 else 'their manifests'} "
        "are gone, though what was made of them is there, and no disk budget is set that lets training activations go (if one "
        "did, name it: --config 'activations={disk_budget_gb: N}'). To make them again: snakemake --profile YOURS "
        + " ".join(map(str, manifests))
        for folder, manifests in gone.items()
    ]


def released(layers: Sequence[Path]) -> list[str]:
    """A sentence for each of the layers' folders that holds training stores; their SAEs are trained and a budget lets them go."""
    found = []
    for folder in layers:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size:
            found.append(
                f"{folder}: {progress.amount(size)} of training activations that no SAE waits for any more, as a repair "
                f"under a disk budget leaves them; once no job is running: rm -r {folder}"
            )
    return found


def as_table(findings: Sequence[Finding]) -> str:
    """One line for each folder of stores and one for all, aligned; GB are 10^9 bytes."""
    lines: dict[str, Finding] = {}
    for finding in findings:
        lines[finding.line] = _sum(
            finding.line, [lines[finding.line], finding] if finding.line in lines else [finding]
        )
    width = max(map(len, [*lines, "stores of"]))
    rows = [f"{'stores of':<{width}} {'stores':>6} {'rows':>11} {'GB':>8} {'GB/s':>6}  found"]
    for each in (*lines.values(), _sum("all", findings)):
        rate = each.bytes / 1e9 / max(each.seconds, 1e-9)
        rows.append(
            f"{each.line:<{width}} {each.stores:>6} {each.rows:>11,} {each.bytes / 1e9:>8.3f} {rate:>6.2f}  {_state(each)}"
        )
    return "\n".join(rows)


def _sum(line: str, findings: Sequence[Finding]) -> Finding:
    return Finding(
        line,
        sum(each.stores for each in findings),
        sum(each.rows for each in findings),
        sum(each.total_rows for each in findings),
        sum(each.bytes for each in findings),
        sum(each.seconds for each in findings),
        [problem for each in findings for problem in each.problems],
    )


def _state(finding: Finding) -> str:
    if finding.problems:
        return f"{len(finding.problems)} DAMAGED"
    return (
        "whole"
        if finding.rows == finding.total_rows
        else f"whole; {finding.total_rows:,} rows when complete"
    )

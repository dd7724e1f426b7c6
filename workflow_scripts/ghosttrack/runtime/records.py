"""What every output was made from, by content: one small JSON record an output, in results/MODEL/records.

A job that succeeds records the parameters of its rule (settings and the digest of its code), the content
digests of its inputs, and the content digest of each output. The next plan compares these records with
what is asked for (`ghosttrack.planning.due`). File dates and Snakemake's own metadata decide nothing, so a copy, a
clone or a deleted .snakemake neither hides a changed setting nor causes needless work.
"""

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import files

# Where digests of large files are cached, below the folder that Snakemake runs in.
CACHE = Path(".snakemake") / "ghosttrack" / "digests"
# Smaller files are read every time: reading one takes less than looking it up saves.
CACHED_BYTES = 1 << 20
# A file written less than this many seconds ago may change again within the clock's resolution: not cached.
SETTLED_SECONDS = 2.0
# Parameters that change no result: where progress is kept, and what is compared with the run rather than computed.
UNTRACKED_PARAMS = frozenset({"state", "made_from", "expected"})
# Inputs that a job only waits for and does not read, by their name in the rule.
ORDER_ONLY_INPUTS = ("earlier",)
# How long a shared file system may show one node the former version of what another node has replaced (NFS: 60 s).
SHARED_SECONDS = 60.0
REMEDY = "Run the same command again: its job makes it anew. To keep your version, copy it elsewhere first"
# Snakemake keeps the date of a directory in this file.
_STAMP = ".snakemake_timestamp"


class Record(NamedTuple):
    """What one output was made from."""

    params: Mapping[str, Any]
    inputs: Mapping[str, str]  # content digest by label
    sha256: str  # content digest of the output itself


class Description(NamedTuple):
    """A job as its records describe it: parameters, and label and path of each input that it reads."""

    params: dict[str, Any]
    inputs: dict[str, str]


def describe(
    params: Mapping[str, Any], inputs: Sequence[str], order_only: Iterable[str] = ()
) -> Description:
    """Describe a job in a form that is the same on every machine and in every folder.

    A path outside `results` is a user's file: it is labelled by its name, in the parameters too, so that
    moving the file to another folder changes nothing.

    Args:
        params: the rule's parameters, JSON-able. inputs: paths. order_only: inputs that the job does not read.
    """
    skipped, labels = set(order_only), dict[str, str]()
    for path in dict.fromkeys(inputs):
        if path in skipped:
            continue
        label = name = path if "results" in Path(path).parts else Path(path).name
        count = 1
        while label in labels:
            count += 1
            label = f"{name} ({count})"
        labels[label] = path
    foreign = {path: label for label, path in labels.items() if path != label}
    tracked = {key: value for key, value in params.items() if key not in UNTRACKED_PARAMS}
    return Description(_plain(tracked, foreign), labels)


def describe_job(job: Any) -> Description:
    """`describe` for a job of Snakemake's graph, or for the `snakemake` object of a script."""
    names = set(job.input.keys()) if hasattr(job.input, "keys") else set()
    waited = [
        str(path)
        for name in ORDER_ONLY_INPUTS
        if name in names
        for path in _listed(getattr(job.input, name))
    ]
    params = dict(job.params.items()) if hasattr(job.params, "items") else {}
    return describe(params, [str(path) for path in _listed(job.input)], waited)


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str | Path) else list(value)


def _plain(value: Any, foreign: Mapping[str, str]) -> Any:
    """`value` as JSON gives it back, user paths replaced by their labels."""
    if isinstance(value, Mapping):
        return {
            str(key): _plain(each, foreign)
            for key, each in sorted(value.items(), key=lambda item: str(item[0]))
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [
            _plain(each, foreign)
            for each in (sorted(value) if isinstance(value, set | frozenset) else value)
        ]
    if value is None or isinstance(value, bool | int | float):
        return value
    return foreign.get(str(value), str(value))


def record_path(output: str | Path) -> Path:
    """Where the record of an output lies: results/MODEL/a/b -> results/MODEL/records/a/b.json."""
    path = Path(output)
    parts = path.parts
    if "results" in parts and len(parts) > (at := parts.index("results")) + 2:
        return Path(*parts[: at + 2], "records", *parts[at + 2 : -1], f"{path.name}.json")
    return path.parent / ".records" / f"{path.name}.json"


def read(output: str | Path) -> Record | None:
    """The record of an output; None if there is none, or if it is damaged."""
    try:
        found = json.loads(record_path(output).read_bytes())
        return Record(dict(found["params"]), dict(found["inputs"]), str(found["sha256"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(
    rule: str, description: Description, digests: Mapping[str, str], outputs: Iterable[str]
) -> None:
    """Record what `outputs`, which stand, were made from.

    Args:
        rule: for a reader; two rules that do the same make the same result.
        digests: content digest of each input by label, taken before the job read it.
    Raises:
        UserError: an output is missing.
    """
    for output in outputs:
        found = digest_of(output)
        if found is None:
            raise UserError(f"{output} was not written by its job: run the same command again")
        content = {
            "rule": rule,
            "params": description.params,
            "inputs": dict(digests),
            "sha256": found,
        }
        with files.atomic_write(record_path(output), durable=False) as stream:
            json.dump(content, stream, sort_keys=True, separators=(",", ":"))


@contextmanager
def recorded(job: Any) -> Iterator[None]:
    """Around a job's work: check and digest its inputs before, write the records of its outputs after.

    Args:
        job: the `snakemake` object of a script. A rule without a parameter `code` is not recorded.
    Raises:
        UserError: an input is missing, or is not what its own job wrote.
    """
    outputs = [str(path) for path in _listed(job.output)] if hasattr(job.output, "__iter__") else []
    if not outputs or not hasattr(job.params, "keys") or "code" not in job.params.keys():  # noqa: SIM118
        yield
        return
    description = describe_job(job)
    digests = {label: checked_digest(path) for label, path in description.inputs.items()}
    yield
    write(str(job.rule), description, digests, outputs)


def check_lineage(outputs: Iterable[str | Path], expected: Mapping[str, Any]) -> int:
    """Check that results were made with this run's settings, and from the files that stand now, back to the model.

    Args:
        outputs: where to begin.
        expected: this run's settings by section, as the parameters of its rules carry them; of a section, a record may
            hold some keys only.
    Returns:
        The number of files whose records agree.
    Raises:
        UserError: naming the file, and the setting or input that differs.
    """
    waiting, seen = [str(path) for path in outputs], set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen or (record := read(path)) is None:
            continue
        seen.add(path)
        for key in record.params.keys() & expected.keys():
            for name, (made, asked) in _unequal(key, record.params[key], expected[key]).items():
                raise UserError(
                    f"{path} was made with {name} {made}, this run asks for {asked}: run the same command again"
                )
        for label, digest in record.inputs.items():
            made_now = read(label)
            if made_now is not None and made_now.sha256 != digest:
                raise UserError(
                    f"{path} was made from another {label} than the one that stands now: run the same command again"
                )
            waiting.append(label)
    return len(seen)


def _unequal(key: str, made: Any, asked: Any) -> dict[str, tuple[Any, Any]]:
    if isinstance(made, Mapping) and isinstance(asked, Mapping):
        plain = _plain(asked, {})
        return {
            f"{key}.{name}": (value, plain.get(name))
            for name, value in made.items()
            if plain.get(name) != value
        }
    return {} if made == _plain(asked, {}) else {key: (made, asked)}


def checked_digest(path: str | Path) -> str:
    """Content digest of an input, which must be what the job that made it recorded, if one did.

    Raises:
        UserError: it is missing or differs.
    """
    end = time.monotonic() + (SHARED_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0)
    while True:
        found, record = digest_of(path), read(path)
        if (
            found is not None and (record is None or record.sha256 == found)
        ) or time.monotonic() >= end:
            break
        time.sleep(1.0)
    if found is None:
        raise UserError(f"{path} is missing: run the same command again, its job makes it")
    if record is not None and record.sha256 != found:
        raise UserError(f"{path} is not what its job wrote (damaged or edited). {REMEDY}")
    return found


def digest_of(path: str | Path) -> str | None:
    """Content digest of what stands at `path`, as 64 hex digits; None if nothing does.

    A file: SHA-256 of all its bytes. A store `X.zarr` with a manifest `X.json` beside it: of the manifest, which
    holds the checksums that every reader verifies, and of the names and sizes of the store's files. Any other
    directory: of the names and bytes of all its files.
    """
    path = Path(path)
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        return _file_digest(path, status)
    manifest = path.with_suffix(".json")
    sealed = path.suffix == ".zarr" and manifest.is_file()
    listing: list[Any] = [digest_of(manifest)] if sealed else []
    for name, size in sorted(_walk(path)):
        listing.append([name, size] if sealed else [name, digest_of(path / name)])
    return files.sha256_json(listing)


# Files of a transformers directory that the model or its tokenizer is read from.
_MODEL_FILES = (
    "*.safetensors",
    "pytorch_model*.bin",
    "*.gguf",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
)


def model_digest(directory: Path) -> str:
    """Content digest of a transformers directory: names and all bytes of its weights, configuration and tokenizer."""
    paths = {path for pattern in _MODEL_FILES for path in directory.glob(pattern) if path.is_file()}
    return files.sha256_json([[path.name, digest_of(path)] for path in sorted(paths)])


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Name relative to `folder` and size in bytes of each file below it."""
    waiting = [("", os.fspath(folder))]
    while waiting:
        prefix, place = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.name != _STAMP:
                    yield prefix + entry.name, entry.stat().st_size


def _file_digest(path: Path, status: os.stat_result) -> str | None:
    try:
        if status.st_size < CACHED_BYTES:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        place = Path.cwd() / CACHE / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        identity = " ".join(
            str(value)
            for value in (
                status.st_dev,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            )
        )
        with_identity, _, known = _text_of(place).rpartition(" ")
        if with_identity == identity:
            return known
        found = files.sha256_file(path)
    except FileNotFoundError:
        return None
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS:
        _remember(place, f"{identity} {found}")
    return found


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _remember(place: Path, text: str) -> None:
    """Cache a digest. Where the folder cannot be written, or Snakemake never ran, nothing is cached."""
    if not place.parents[2].is_dir():
        return
    with contextlib.suppress(OSError), files.atomic_write(place, durable=False) as stream:
        stream.write(text)

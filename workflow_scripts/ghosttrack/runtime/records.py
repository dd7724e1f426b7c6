"""Records of the params and inputs of every output, by content.

There is one JSON file per output, in results/MODEL/records. A job that succeeds records the params
of its rule (settings and the digest of its code), the content digests of its inputs, and the
content digest of each output. The next plan compares the records with the planned jobs
(`ghosttrack.planning.due`). File dates and Snakemake's metadata have no influence. So a copy or a
clone of the folder, or a deleted .snakemake, neither hides a changed setting nor reruns jobs.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import files, libraries

# Cache for digests of large files, in Snakemake's working directory.
CACHE = Path(".snakemake") / "ghosttrack" / "digests"
# Smaller files are not cached: it is faster to read them again.
CACHED_BYTES = 1 << 20
# Digests of younger files are not cached: such a file could change within the resolution of its
# date.
SETTLED_SECONDS = 2.0
# Params without influence on results: folders of checkpoints and of event files, and values that are
# only checked.
UNTRACKED_PARAMS = frozenset({"state", "events", "training_digest", "expected"})
# Names of inputs that a job waits for but does not read.
ORDER_ONLY_INPUTS = ("earlier",)
# Longest time for which a node may see the old version of a file on a shared file system (NFS: 60
# s).
SHARED_SECONDS = 60.0
REMEDY = (
    "Run the same command again to make it again. To keep your version, copy it elsewhere first"
)
# Label of an output of a run: results/MODEL/...
_OF_A_RUN = re.compile(r"results/([^/]+)/.+")
# Snakemake stores the date of a directory in this file.
_STAMP = ".snakemake_timestamp"


class Record(NamedTuple):
    """Record of one output."""

    params: Mapping[str, Any]
    inputs: Mapping[str, str]  # label of an input -> content digest
    sha256: str  # content digest of the output
    libraries: Mapping[str, str] = MappingProxyType({})  # versions when the job ran; never compared


class Description(NamedTuple):
    """Params and inputs of a job, as in its records."""

    params: dict[str, Any]
    inputs: dict[str, str]  # label -> path, of the inputs that the job reads


def describe(
    params: Mapping[str, Any], inputs: Sequence[str], order_only: Iterable[str] = ()
) -> Description:
    """Describe a job independently of the machine and the folder.

    A path outside `results` is a user's file. Its label is its name, also in the params, so that
    the file can be moved to another folder.

    Args:
        params: JSON-serialisable params of the rule.
        inputs: paths.
        order_only: inputs that the job does not read.
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


def without_folders(params: Mapping[str, Any]) -> dict[str, Any]:
    """Params in which the directory of a model, and of local SAEs, are only names.

    Their content decides: `planning.plan.check_sources` compares the model with its digest, and the
    files of SAEs are inputs.
    """
    plain = dict(params)
    source, sae = params.get("source"), params.get("sae")
    if isinstance(source, Mapping) and source.get("kind") == "directory":
        plain["source"] = {**source, "id": Path(str(source.get("id"))).name}
    if isinstance(sae, Mapping) and not sae.get("revision") and "source" in sae:
        plain["sae"] = {**sae, "source": _name_of_saes(str(sae["source"]))}
    return plain


def _name_of_saes(source: str) -> str:
    """`path/to/sae_{layer}` -> `sae_{layer}`; a name of the SAELens library stays as it is."""
    return source if source.startswith("saelens:") else Path(source).name


def describe_job(job: Any) -> Description:
    """`describe` a job of Snakemake's graph, or the `snakemake` object of a script."""
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
    """`value` as read back from JSON, with labels instead of user paths."""
    if isinstance(value, Mapping):
        return {
            str(key): _plain(inner, foreign)
            for key, inner in sorted(value.items(), key=lambda item: str(item[0]))
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [
            _plain(item, foreign)
            for item in (sorted(value) if isinstance(value, set | frozenset) else value)
        ]
    if value is None or isinstance(value, bool | int | float):
        return value
    return foreign.get(str(value), str(value))


def record_path(output: str | Path) -> Path:
    """Path of an output's record: results/MODEL/a/b -> results/MODEL/records/a/b.json."""
    path = Path(output)
    parts = path.parts
    if "results" in parts and len(parts) > (at := parts.index("results")) + 2:
        return Path(*parts[: at + 2], "records", *parts[at + 2 : -1], f"{path.name}.json")
    return path.parent / ".records" / f"{path.name}.json"


def read(output: str | Path) -> Record | None:
    """The record of an output; None if it is missing or damaged."""
    return _read(record_path(output))


def read_of_run(run: Path, inside: str) -> Record | None:
    """The record of a file of a run in any folder; None if it is missing or damaged.

    Args:
        run: results/MODEL, or a copy of it.
        inside: the file relative to `run`.
    """
    return _read(run / "records" / f"{inside}.json")


def _read(path: Path) -> Record | None:
    try:
        fields = json.loads(path.read_bytes())
        return Record(
            dict(fields["params"]),
            dict(fields["inputs"]),
            str(fields["sha256"]),
            dict(fields.get("libraries", {})),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(
    rule: str, description: Description, digests: Mapping[str, str], outputs: Iterable[str]
) -> None:
    """Write the records of existing `outputs`.

    Args:
        rule: name of the rule, for readers; it is never compared.
        digests: label of each input -> content digest, from before the job read the input.
    Raises:
        UserError: an output is missing.
    """
    for output in outputs:
        digest = digest_of(output)
        if digest is None:
            raise UserError(f"{output} was not written by its job: run the same command again")
        content = {
            "rule": rule,
            "params": description.params,
            "inputs": dict(digests),
            "sha256": digest,
            "libraries": dict(libraries.versions()),
        }
        with files.atomic_write(record_path(output), durable=False) as stream:
            json.dump(content, stream, sort_keys=True, separators=(",", ":"))


@contextmanager
def recorded(job: Any) -> Iterator[None]:
    """Check the inputs of a job before the block, and write the records of its outputs after it.

    Args:
        job: the `snakemake` object of a script. Without the param `code`, nothing is recorded.
    Raises:
        UserError: an input is missing, or differs from its record.
    """
    outputs = [str(path) for path in _listed(job.output)] if hasattr(job.output, "__iter__") else []
    if not outputs or not hasattr(job.params, "keys") or "code" not in job.params.keys():  # noqa: SIM118
        yield
        return
    description = describe_job(job)
    digests = {label: checked_digest(path) for label, path in description.inputs.items()}
    yield
    write(str(job.rule), description, digests, outputs)


class Lineage(NamedTuple):
    """What `check_lineage` found."""

    files: int  # number of checked files
    libraries: dict[str, list[str]]  # versions of each library in the records of these files


def check_lineage(outputs: Iterable[str | Path], expected: Mapping[str, Any]) -> Lineage:
    """Check that results, and all files they depend on, match the settings and the current inputs.

    Args:
        outputs: the results.
        expected: this run's settings by section; a record may have only some keys of a section.
    Raises:
        UserError: with the file, and the setting or input that differs.
    """
    waiting, seen = [str(path) for path in outputs], dict[str, Record]()
    while waiting:
        path = waiting.pop()
        if path in seen or (record := read(path)) is None:
            continue
        seen[path] = record
        for key in record.params.keys() & expected.keys():
            for name, (made, asked) in _unequal(key, record.params[key], expected[key]).items():
                raise UserError(
                    f"{path} was made with {name} {made}, but this run has {asked}: run the same "
                    "command again"
                )
        for label, digest in record.inputs.items():
            made_now = read(label)
            if made_now is not None and made_now.sha256 != digest:
                raise UserError(
                    f"{path} was made from another version of {label}: run the same command again"
                )
            waiting.append(label)
    return Lineage(len(seen), libraries.together(record.libraries for record in seen.values()))


def check_run(run: Path, paths: Iterable[Path]) -> None:
    """Check that files of a finished run are what its jobs wrote, from one state of the run.

    For commands that read a run beside the workflow. The run may lie in any folder: its records are
    in `run`/records. A file that is missing or has no record is not checked.

    Args:
        run: results/MODEL, or a copy of it.
        paths: below `run`.
    Raises:
        UserError: a file differs from its record, or it or a file that it depends on was made from
            another version of an input than the run has now.
    """
    name = Path(os.path.abspath(run)).name  # noqa: PTH100
    remedy = (
        f'run again the command that made the run: make run ARGS="--config model={name}", with its '
        "other settings"
    )
    waiting = list(dict.fromkeys(path.relative_to(run).as_posix() for path in paths))
    known: dict[str, Record | None] = {}

    def record_of(inside: str) -> Record | None:
        if inside not in known:
            known[inside] = read_of_run(run, inside)
        return known[inside]

    for inside in waiting:
        record, digest = record_of(inside), digest_of(run / inside)
        if record is not None and digest not in (None, record.sha256):
            raise UserError(
                f"{run / inside} was damaged or edited since its job wrote it. To make it again, "
                f"{remedy}. To keep your version, copy it elsewhere first"
            )
    made_as = _name_in(filter(None, map(record_of, waiting)), name)
    seen = set[str]()
    while waiting:
        inside = waiting.pop()
        if inside in seen or (record := record_of(inside)) is None:
            continue
        seen.add(inside)
        for label, digest in record.inputs.items():
            source = label.removeprefix(f"results/{made_as}/")
            if source == label:  # of another run, or a user's file
                continue
            made_now = record_of(source)
            if made_now is not None and made_now.sha256 != digest:
                raise UserError(
                    f"{run / inside} was made from another version of {run / source}: the run was "
                    f"changed and is not finished. To finish it, {remedy}"
                )
            waiting.append(source)


def _name_in(made: Iterable[Record], folder: str) -> str:
    """The name that a run had when its files were made: the folder of a copy may have another one."""
    found = (_OF_A_RUN.fullmatch(label) for record in made for label in record.inputs)
    names = Counter(match[1] for match in found if match)
    return folder if folder in names or not names else names.most_common(1)[0][0]


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
    """Content digest of an input, which must match its record if there is one.

    Raises:
        UserError: the input is missing or differs from its record.
    """
    end = time.monotonic() + (SHARED_SECONDS if "SLURM_JOB_ID" in os.environ else 0.0)
    while True:
        digest, record = digest_of(path), read(path)
        if (
            digest is not None and (record is None or record.sha256 == digest)
        ) or time.monotonic() >= end:
            break
        time.sleep(1.0)
    if digest is None:
        raise UserError(f"{path} is missing: run the same command again to make it")
    if record is not None and record.sha256 != digest:
        raise UserError(f"{path} was damaged or edited since its job wrote it. {REMEDY}")
    return digest


def digest_of(path: str | Path) -> str | None:
    """Content digest (64 hex digits) of a file or directory; None if `path` does not exist.

    For a file, the SHA-256 of its bytes. For a store `X.zarr` with a manifest `X.json`, a digest of
    the manifest, whose checksums every reader verifies, and of the names and sizes of the store's
    files. For any other directory, a digest of the names and bytes of all its files.
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


# Files of a transformers directory from which the model or its tokenizer is loaded.
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
    """Content digest of a transformers directory: weights, configuration and tokenizer."""
    paths = {path for pattern in _MODEL_FILES for path in directory.glob(pattern) if path.is_file()}
    return files.sha256_json([[path.name, digest_of(path)] for path in sorted(paths)])


# First letters of files that others put into folders: NFS for an open file that was deleted, macOS.
_FOREIGN = (".nfs", "._", ".DS_Store")


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Name relative to `folder` and size in bytes of every file of a job below it."""
    waiting = [("", os.fspath(folder))]
    while waiting:
        prefix, directory = waiting.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append((f"{prefix}{entry.name}/", entry.path))
                elif entry.name != _STAMP and not entry.name.startswith(_FOREIGN):
                    yield prefix + entry.name, entry.stat().st_size


def _file_digest(path: Path, status: os.stat_result) -> str | None:
    try:
        if status.st_size < CACHED_BYTES:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        cached = Path.cwd() / CACHE / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
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
        cached_identity, _, cached_digest = _text_of(cached).rpartition(" ")
        if cached_identity == identity:
            return cached_digest
        digest = files.sha256_file(path)
    except FileNotFoundError:
        return None
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS:
        _write_cache(cached, f"{identity} {digest}")
    return digest


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _write_cache(path: Path, text: str) -> None:
    """Cache a digest, if Snakemake has run in the folder and the folder is writable."""
    if not path.parents[2].is_dir():
        return
    with contextlib.suppress(OSError), files.atomic_write(path, durable=False) as stream:
        stream.write(text)

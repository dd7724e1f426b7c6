"""The Hugging Face hub, with one readable error when something cannot be had from it.

Nothing here runs code from a repository. Only the fetching rules import this module.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError

log = logging.getLogger("ghosttrack")

# Configuration and tokenizer files that a repository may hold at its top level.
_SMALL = (".json", ".txt", ".model", ".tiktoken", ".jinja")


class Snapshot(NamedTuple):
    """A repository's files on disk and the commit they belong to."""

    path: Path
    revision: str | None


class Rows(NamedTuple):
    """The rows of one split and the commit they belong to (None: taken from the local cache)."""

    rows: Iterator[Mapping[str, Any]]
    revision: str | None


def snapshot(repository: str, revision: str | None, *, instead: str) -> Snapshot:
    """Weights (safetensors if there are any), configuration and tokenizer of a model repository.

    Without a network, or with HF_HUB_OFFLINE set, the local hub cache serves if it has the revision.

    Args:
        repository: hub id.
        revision: commit; None takes the newest.
        instead: what to do without the hub, for the error message.
    Raises:
        UserError: naming the repository, the reason, and `instead`.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        about = HfApi().model_info(repository, revision=revision)
    except (
        Exception
    ) as error:  # a dozen unrelated types: no network, proxy, offline mode, unknown id, gated
        try:
            cached = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            raise UserError(
                _reason("source.id", f"model {repository!r}", revision, error, instead)
            ) from error
        log.info("the hub cannot be reached; using %s from the local hub cache", repository)
        return Snapshot(cached, cached.name)
    names = [item.rfilename for item in about.siblings or [] if "/" not in item.rfilename]
    weights = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
    weights = weights or [
        name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")
    ]
    if not weights:
        raise UserError(
            f"source.id: model {repository!r} holds no model*.safetensors and no pytorch_model*.bin at its top level; "
            f"{instead}"
        )
    wanted = sorted(weights + [name for name in names if name.endswith(_SMALL)])
    log.info("fetching %s at %s: %s", repository, about.sha, ", ".join(wanted))
    try:
        path = snapshot_download(repository, revision=about.sha, allow_patterns=wanted)
    except Exception as error:
        raise UserError(
            _reason("source.id", f"model {repository!r}", revision, error, instead)
        ) from error
    return Snapshot(Path(path), about.sha)


def folder(
    repository: str,
    revision: str,
    pick: Callable[[Sequence[str]], str],
    wanted: Sequence[str],
    *,
    key: str,
    instead: str,
) -> Path:
    """One folder of a repository on disk, with those of the `wanted` files that it holds.

    Without a network, or with HF_HUB_OFFLINE set, the local hub cache serves if it has the revision.

    Args:
        repository: hub id. revision: commit.
        pick: gets the paths of all files, gives the folder's.
        wanted: names of files.
        key: settings key that the error message names. instead: what to do without the hub.
    Raises:
        UserError: naming `key`, the repository, the reason, and `instead`; whatever `pick` raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    name = f"repository {repository!r}"
    try:
        about = HfApi().model_info(repository, revision=revision)
    except Exception as error:  # as in `snapshot`
        try:
            cached = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            raise UserError(_reason(key, name, revision, error, instead)) from error
        log.info("the hub cannot be reached; using %s from the local hub cache", repository)
        return cached / pick(
            [
                path.relative_to(cached).as_posix()
                for path in sorted(cached.rglob("*"))
                if path.is_file()
            ]
        )
    inside = pick([item.rfilename for item in about.siblings or []])
    log.info("fetching %s of %s at %s", inside, repository, about.sha)
    try:
        path = snapshot_download(
            repository, revision=about.sha, allow_patterns=[f"{inside}/{each}" for each in wanted]
        )
    except Exception as error:
        raise UserError(_reason(key, name, revision, error, instead)) from error
    return Path(path) / inside


def rows(
    dataset: str,
    config: str | None,
    split: str,
    revision: str | None,
    *,
    streaming: bool,
    key: str,
    instead: str,
) -> Rows:
    """Rows of one split of a hub data set, in the hub's order.

    Args:
        dataset: hub id. config: its configuration, if it has several. split: e.g. "train".
        revision: commit; None takes the newest and says which it was.
        streaming: read rows as they come instead of downloading the split first.
        key: settings key that the error message names. instead: what to do without the hub.
    Raises:
        UserError: naming `key`, the data set, the reason, and `instead`.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    name = f"data set {dataset!r}"
    try:
        try:
            revision = HfApi().dataset_info(dataset, revision=revision).sha
        except OfflineModeIsEnabled:
            log.info("HF_HUB_OFFLINE is set; looking for %s in the local cache", dataset)
        table = load_dataset(dataset, config, split=split, revision=revision, streaming=streaming)
    except Exception as error:
        raise UserError(_reason(key, name, revision, error, instead)) from error
    log.info("reading %s, %s split, revision %s", dataset, split, revision or "as cached")
    return Rows(_guarded(table, key, name, revision, instead), revision)


def _guarded(
    table: Any, key: str, name: str, revision: str | None, instead: str
) -> Iterator[Mapping[str, Any]]:
    """The rows of `table`; a connection that breaks half-way is a UserError too."""
    remaining = iter(table)
    while True:
        try:
            row = next(remaining)
        except StopIteration:
            return
        except Exception as error:
            raise UserError(_reason(key, name, revision, error, instead)) from error
        yield row


def _reason(key: str, name: str, revision: str | None, error: BaseException, instead: str) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    if isinstance(error, GatedRepoError):
        what = "needs a licence accepted on the hub and a login (hf auth login)"
    elif isinstance(error, RevisionNotFoundError):
        what = "has no such revision on the hub"
    elif isinstance(error, RepositoryNotFoundError):
        what = "is not on the hub, or is private (hf auth login)"
    elif (
        isinstance(error, ConnectionError | TimeoutError | LocalEntryNotFoundError)
        or "httpx" in type(error).__module__
    ):
        what = f"cannot be fetched: the hub cannot be reached ({type(error).__name__})"
    else:
        what = f"cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return f"{key}: {name}{at} {what}; {instead}"

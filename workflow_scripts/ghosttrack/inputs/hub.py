"""Download from the Hugging Face hub, with readable errors.

No code from a repository is run. Only the rules that fetch import this module.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError

log = logging.getLogger("ghosttrack")

# Extensions of configuration and tokenizer files at the top level of a repository.
_SMALL = (".json", ".txt", ".model", ".tiktoken", ".jinja")


class Snapshot(NamedTuple):
    """The local directory of a repository's files, and their commit."""

    path: Path
    revision: str | None


class HubRows(NamedTuple):
    """The rows of one split, and their commit (None: read from the local cache)."""

    rows: Iterator[Mapping[str, Any]]
    revision: str | None


def snapshot(repository: str, revision: str | None, *, instead: str) -> Snapshot:
    """Weights (safetensors if available), configuration and tokenizer of a model repository.

    Without a network, or with HF_HUB_OFFLINE, the revision is taken from the local hub cache.

    Args:
        repository: hub id.
        revision: commit; None: the newest.
        instead: the alternative to the hub, for the error message.
    Raises:
        UserError: naming the repository, the reason, and `instead`.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        about = HfApi().model_info(repository, revision=revision)
    except Exception as error:  # of many unrelated types: network, proxy, unknown id, gated
        try:
            cached = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            raise UserError(
                reason("source.id", f"model {repository!r}", revision, error, instead)
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
            f"source.id: model {repository!r} has no model*.safetensors and no pytorch_model*.bin "
            f"at its top level; {instead}"
        )
    wanted = sorted(weights + [name for name in names if name.endswith(_SMALL)])
    log.info("fetching %s at %s: %s", repository, about.sha, ", ".join(wanted))
    try:
        path = snapshot_download(repository, revision=about.sha, allow_patterns=wanted)
    except Exception as error:
        raise UserError(
            reason("source.id", f"model {repository!r}", revision, error, instead)
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
    """Download one folder of a repository, with those of the `wanted` files that exist.

    Without a network, or with HF_HUB_OFFLINE, the revision is taken from the local hub cache.

    Args:
        repository: hub id. revision: commit.
        pick: maps the paths of all files to the path of the folder.
        wanted: names of files.
        key: settings key for the error message. instead: the alternative to the hub.
    Returns:
        The local path of the folder.
    Raises:
        UserError: naming `key`, the repository, the reason, and `instead`; also what `pick` raises.
    """
    from huggingface_hub import HfApi, snapshot_download

    name = f"repository {repository!r}"
    try:
        about = HfApi().model_info(repository, revision=revision)
    except Exception as error:  # as in `snapshot`
        try:
            cached = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            raise UserError(reason(key, name, revision, error, instead)) from error
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
            repository, revision=about.sha, allow_patterns=[f"{inside}/{file}" for file in wanted]
        )
    except Exception as error:
        raise UserError(reason(key, name, revision, error, instead)) from error
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
) -> HubRows:
    """Rows of one split of a hub data set, in the hub's order.

    Args:
        dataset: hub id. config: its configuration, if it has several. split: e.g. "train".
        revision: commit; None: the newest.
        streaming: read row by row instead of downloading the split first.
        key: settings key for the error message. instead: the alternative to the hub.
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
        raise UserError(reason(key, name, revision, error, instead)) from error
    log.info("reading %s, %s split, revision %s", dataset, split, revision or "as cached")
    return HubRows(_guarded(table, key, name, revision, instead), revision)


def _guarded(
    table: Any, key: str, name: str, revision: str | None, instead: str
) -> Iterator[Mapping[str, Any]]:
    """The rows of `table`; a lost connection also raises a UserError."""
    remaining = iter(table)
    while True:
        try:
            row = next(remaining)
        except StopIteration:
            return
        except Exception as error:
            raise UserError(reason(key, name, revision, error, instead)) from error
        yield row


def commit(repository: str, revision: str | None, *, key: str, instead: str) -> str:
    """The commit of a repository's revision.

    Without a network, or with HF_HUB_OFFLINE, the commit in the local hub cache.

    Args:
        repository: hub id.
        revision: commit, branch or tag; None: the newest commit.
        key: settings key for the error message. instead: the alternative to the hub.
    Raises:
        UserError: naming `key`, the repository, the reason, and `instead`.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        return str(HfApi().model_info(repository, revision=revision).sha)
    except Exception as error:  # as in `snapshot`
        try:
            cached = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except Exception:
            raise UserError(
                reason(key, f"repository {repository!r}", revision, error, instead)
            ) from error
    log.info("the hub cannot be reached; using %s from the local hub cache", repository)
    return cached.name


def reason(key: str, name: str, revision: str | None, error: BaseException, instead: str) -> str:
    """Error message: the settings key, what was not fetched, the reason, and the alternative."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    if isinstance(error, GatedRepoError):
        what = "requires that you accept its licence on the hub and log in (hf auth login)"
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
        message = str(error).splitlines()[0] if str(error) else ""
        what = f"cannot be fetched ({type(error).__name__}: {message})"
    return f"{key}: {name}{at} {what}; {instead}"

"""Run a script's `main` as a Snakemake job or from the command line, with the same signature."""

import errno
import inspect
import logging
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError
from ghosttrack.runtime import (
    fault_injection,
    gpu_claims,
    gpu_usage,
    lock_log,
    progress,
    records,
    resource_use,
)

log = logging.getLogger("ghosttrack")

# Libraries whose messages at level INFO are of no use in a log.
_TALKATIVE = ("httpx", "urllib3", "filelock", "fontTools", "matplotlib")


def run(main: Callable[..., None], namespace: Mapping[str, Any]) -> None:
    """Call `main` with values from Snakemake, or from the command line without Snakemake.

    Each argument of `main` is looked up by name in the rule's output, input, params, wildcards,
    resources and `threads`, and converted to its annotation. Errors end the job with a message on
    the screen; tracebacks go to the rule's log. Logging and signal handlers are restored at the end.

    Args:
        namespace: globals of the script, with `snakemake` if Snakemake runs it.
    """
    if "snakemake" not in namespace:
        _command_line(main)
        return
    snakemake = namespace["snakemake"]
    log_path = str(snakemake.log[0]) if len(snakemake.log) else None
    with _logged(log_path), _ended_by_sigterm():
        _as_job(main, snakemake, log_path)


def _as_job(main: Callable[..., None], snakemake: Any, log_path: str | None) -> None:
    arguments: dict[str, Any] = {}
    try:
        arguments = _arguments(main, snakemake)
        with (
            gpu_claims.claimed(_gpus(snakemake)),
            _observed(log_path, _batch(arguments)[1], _gpus(snakemake)),
            records.recorded(snakemake),
        ):
            main(**arguments)
    except UserError as error:
        _to_log_file_only("traceback of the error below")
        log.error("%s", error)
        sys.exit(1)
    except Exception as error:
        _to_log_file_only("traceback of the error below")
        message = (
            _resource_error(error, *_batch(arguments))
            or f"unexpected {type(error).__name__}: {error}"
        )
        log.error("%s (traceback in %s)", message, log_path or "the log")
        sys.exit(1)


@contextmanager
def _observed(log_path: str | None, batch: int, gpus: int) -> Iterator[None]:
    """Log where a job runs, its peak memory and CPU time, inject faults, and sample its GPU.

    No effect without a log.
    """
    if log_path is None:
        yield
        return
    log.info("%s", _process_line())
    fault = fault_injection.observer(Path(log_path), batch)
    progress.observers[:] = [fault] if fault else []
    try:
        with gpu_usage.sampled(gpu_usage.samples_beside(Path(log_path))) if gpus else nullcontext():
            yield
    finally:
        progress.observers.clear()
        log.info("%s", resource_use.line())


def _gpus(snakemake: Any) -> int:
    """Number of accelerators in the rule's resources."""
    value = _look_up(snakemake, "gpu")
    return 0 if value is _MISSING else int(value)


def _batch(arguments: Mapping[str, Any]) -> tuple[str, int]:
    """Name and value of the argument that bounds a job's memory; ("", 0) without one."""
    return next(
        ((name, int(arguments[name])) for name in ("micro_batch", "batch") if name in arguments),
        ("", 0),
    )


def _resource_error(error: Exception, name: str, batch: int) -> str:
    """Message and remedy for a lack of memory or disk space; "" for any other error."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        setting, less = (f" with {name}={batch}", " and half the batch") if batch else ("", "")
        return (
            f"out of memory{setting}: {error}. The next attempt (--retries) gets more "
            f"memory{less}, and resumes from what is saved"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"no disk space left: {error}. Free space or raise the quota, then run the same "
            "command again; finished results are kept"
        )
    return ""


def _process_line() -> str:
    """First line of a log: process, host, Slurm job, and visible accelerators."""
    job, gpus = os.environ.get("SLURM_JOB_ID"), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        f"process {os.getpid()} on {os.uname().nodename}"
        + (f", Slurm job {job}" if job else "")
        + (f", GPU {gpus}" if gpus else "")
    )


def _arguments(main: Callable[..., None], snakemake: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    hints = typing.get_type_hints(main)
    values: dict[str, Any] = {}
    for name, parameter in inspect.signature(main).parameters.items():
        value = _look_up(snakemake, name)
        if value is _MISSING:
            if parameter.default is inspect.Parameter.empty:
                raise UserError(
                    f"rule {snakemake.rule} has no {name!r}, an argument of its script; add it to "
                    "the rule"
                )
            continue
        hint = hints.get(name, Any)
        if typing.get_origin(hint) is list:
            value = [value] if isinstance(value, str | Path) else list(value)
        values[name] = TypeAdapter(hint).validate_python(value)
    return values


_MISSING = object()


def _look_up(snakemake: Any, name: str) -> Any:
    for source in (
        snakemake.output,
        snakemake.input,
        snakemake.params,
        snakemake.wildcards,
        snakemake.resources,
    ):
        if name in _keys(source):
            return source[name] if isinstance(source, dict) else getattr(source, name)
    return snakemake.threads if name == "threads" else _MISSING


def _keys(source: Any) -> Iterable[str]:
    return typing.cast(Iterable[str], source.keys()) if hasattr(source, "keys") else ()


@contextmanager
def _logged(path: str | None) -> Iterator[None]:
    """Log to the screen and to `path` inside the block; the old loggers are restored after it."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, _TALKATIVE)]
    before = root.handlers, [logger.level for logger in loggers]
    with ExitStack() as opened:
        handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(path, mode="a", encoding="utf-8")
            handlers.append(opened.enter_context(closing(file)))
            opened.enter_context(lock_log.kept(_log_folder(Path(path)) / lock_log.NAME))
        for handler in handlers:
            handler.setFormatter(
                logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
            )
        try:
            root.handlers = handlers
            for logger in loggers:
                logger.setLevel(logging.INFO if logger is root else logging.WARNING)
            logging.captureWarnings(True)
            yield
        finally:
            logging.captureWarnings(False)
            root.handlers = before[0]
            for logger, level in zip(loggers, before[1], strict=True):
                logger.setLevel(level)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block through SystemExit, so that locks and temporary files are cleaned up."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _log_folder(path: Path) -> Path:
    """The folder `logs` of the model of a log."""
    return next((parent for parent in path.parents if parent.name == "logs"), path.parent)


def _to_log_file_only(message: str) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(
                log.makeRecord(log.name, logging.ERROR, "", 0, message, (), sys.exc_info())
            )


def _command_line(main: Callable[..., None]) -> None:
    from jsonargparse import auto_cli

    with _logged(None), _ended_by_sigterm():
        try:
            auto_cli(main, as_positional=False)
        except UserError as error:
            sys.exit(f"error: {error}")

"""Run a script's `main` as a Snakemake job or as a command line: the same signature serves both."""

import errno
import inspect
import logging
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ghosttrack.errors import UserError
from ghosttrack.runtime import fault_injection, gpu_usage, lock_log, progress, records

log = logging.getLogger("ghosttrack")


def run(main: Callable[..., None], namespace: Mapping[str, Any]) -> None:
    """Call `main` with what Snakemake put into the script, else with the command line's values.

    `main`'s keyword names are looked up in the rule's output, input, params, wildcards, resources,
    then `threads`; each value is converted to its annotation. A UserError ends the job with its
    message alone on the screen; every traceback goes to the rule's log.
    """
    if "snakemake" not in namespace:
        _command_line(main)
        return
    snakemake = namespace["snakemake"]
    where = str(snakemake.log[0]) if len(snakemake.log) else None
    _start_logging(where)
    arguments: dict[str, Any] = {}
    try:
        arguments = _arguments(main, snakemake)
        with _observed(where, _batch(arguments)[1], _gpus(snakemake)), records.recorded(snakemake):
            main(**arguments)
    except UserError as error:
        _to_log_file_only("traceback of the error below")
        log.error("%s", error)
        sys.exit(1)
    except Exception as error:
        _to_log_file_only("traceback of the error below")
        said = (
            _machine_trouble(error, *_batch(arguments))
            or f"unexpected {type(error).__name__}: {error}"
        )
        log.error("%s (traceback in %s)", said, where or "the log")
        sys.exit(1)


@contextmanager
def _observed(where: str | None, batch: int, gpus: int) -> Iterator[None]:
    """Say where a job runs, let faults on demand see its progress, sample its GPU; nothing for a job without a log."""
    if where is None:
        yield
        return
    log.info("%s", _place())
    fault = fault_injection.observer(Path(where), batch)
    progress.observers[:] = [fault] if fault else []
    with gpu_usage.sampled(gpu_usage.samples_beside(Path(where))) if gpus else nullcontext():
        yield


def _gpus(snakemake: Any) -> int:
    """Accelerators that the rule asked for."""
    found = _look_up(snakemake, "gpu")
    return 0 if found is _MISSING else int(found)


def _batch(arguments: Mapping[str, Any]) -> tuple[str, int]:
    """Name and value of the resource that bounds a job's memory; ("", 0) without one."""
    return next(
        ((name, int(arguments[name])) for name in ("micro_batch", "batch") if name in arguments),
        ("", 0),
    )


def _machine_trouble(error: Exception, name: str, batch: int) -> str:
    """What to do about an error that lies with the machine, not the code; "" for any other."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        held, less = (f" with {name}={batch}", " and half the batch") if batch else ("", "")
        return f"out of memory{held}: {error}. The next attempt (--retries) gets more memory{less}, and keeps what is saved"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no room to write: {error}. Free space or raise the quota, then run the same command again; what is finished stays"
    return ""


def _place() -> str:
    """The first line of a log: process, host, Slurm's job, and the accelerators that it may use."""
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
        found = _look_up(snakemake, name)
        if found is _MISSING:
            if parameter.default is inspect.Parameter.empty:
                raise UserError(
                    f"rule {snakemake.rule} gives no {name!r}, which its script asks for"
                )
            continue
        hint = hints.get(name, Any)
        if typing.get_origin(hint) is list:
            found = [found] if isinstance(found, str | Path) else list(found)
        values[name] = TypeAdapter(hint).validate_python(found)
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


def _start_logging(path: str | None) -> None:
    form = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    screen = logging.StreamHandler(sys.stderr)
    screen.setFormatter(form)
    root.handlers = [screen]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        kept = logging.FileHandler(path, mode="a", encoding="utf-8")
        kept.setFormatter(form)
        root.addHandler(kept)
        lock_log.keep(_folder_of_logs(Path(path)) / lock_log.NAME)
    logging.captureWarnings(True)
    for noisy in ("httpx", "urllib3", "filelock", "fontTools", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # SIGTERM ends the job through SystemExit, so that locks and temporary files are cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _folder_of_logs(path: Path) -> Path:
    """`logs` of the model, whichever rule's folder a log is in."""
    return next((parent for parent in path.parents if parent.name == "logs"), path.parent)


def _to_log_file_only(message: str) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(
                log.makeRecord(log.name, logging.ERROR, "", 0, message, (), sys.exc_info())
            )


def _command_line(main: Callable[..., None]) -> None:
    from jsonargparse import auto_cli

    _start_logging(None)
    try:
        auto_cli(main, as_positional=False)
    except UserError as error:
        sys.exit(f"error: {error}")

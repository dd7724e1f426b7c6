"""Run a script's `main` as a Snakemake job or as a command line: the same signature serves both."""

import inspect
import logging
import signal
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ghosttrack import journal
from ghosttrack.errors import UserError

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
    _start_logging(str(snakemake.log[0]) if len(snakemake.log) else None)
    try:
        main(**_arguments(main, snakemake))
    except UserError as error:
        _to_log_file_only("traceback of the error below")
        log.error("%s", error)
        sys.exit(1)
    except Exception as error:
        _to_log_file_only("traceback of the error below")
        where = snakemake.log[0] if len(snakemake.log) else "the log"
        log.error("unexpected %s: %s (traceback in %s)", type(error).__name__, error, where)
        sys.exit(1)


def _arguments(main: Callable[..., None], snakemake: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    hints = typing.get_type_hints(main)
    values: dict[str, Any] = {}
    for name, parameter in inspect.signature(main).parameters.items():
        found = _look_up(snakemake, name)
        if found is _MISSING:
            if parameter.default is inspect.Parameter.empty:
                raise UserError(f"rule {snakemake.rule} gives no {name!r}, which its script asks for")
            continue
        hint = hints.get(name, Any)
        if typing.get_origin(hint) is list:
            found = [found] if isinstance(found, str | Path) else list(found)
        values[name] = TypeAdapter(hint).validate_python(found)
    return values


_MISSING = object()


def _look_up(snakemake: Any, name: str) -> Any:
    for source in (snakemake.output, snakemake.input, snakemake.params, snakemake.wildcards, snakemake.resources):
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
        journal.keep(_folder_of_logs(Path(path)) / journal.NAME)
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
            handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, message, (), sys.exc_info()))


def _command_line(main: Callable[..., None]) -> None:
    from jsonargparse import auto_cli

    _start_logging(None)
    try:
        auto_cli(main, as_positional=False)
    except UserError as error:
        sys.exit(f"error: {error}")

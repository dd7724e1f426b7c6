"""Scripts as Snakemake jobs and from the command line, with one signature."""

import logging
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghosttrack.errors import UserError
from ghosttrack.runtime import files, job, lock_log
from ghosttrack.settings import SaeSettings


class Named(SimpleNamespace):
    """A fake of Snakemake's named lists."""

    def keys(self) -> list[str]:
        return list(vars(self))


def snakemake(log: Path, **parts: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(
        ["input", "output", "params", "wildcards", "resources"], Named()
    )
    return {"snakemake": SimpleNamespace(log=[str(log)], rule="r", threads=3, **{**empty, **parts})}


def test_arguments_come_from_the_rule_and_are_converted_to_their_annotations(
    tmp_path: Path,
) -> None:
    seen: dict[str, Any] = {}

    def main(
        *,
        stores: list[Path],
        weights: Path,
        sae: SaeSettings,
        layer: int,
        batch: int,
        threads: int,
        extra: int = 7,
    ) -> None:
        seen.update(locals())

    job.run(
        main,
        snakemake(
            tmp_path / "log",
            input=Named(stores="one.zarr"),
            output=Named(weights="w.safetensors"),
            params=Named(sae={"k": 5}),
            wildcards=Named(layer="07"),
            resources=Named(batch=16),
        ),
    )
    assert seen["stores"] == [Path("one.zarr")]
    assert seen["sae"].k == 5
    assert seen["sae"].d_sae == SaeSettings().d_sae
    assert (seen["layer"], seen["batch"], seen["threads"], seen["extra"]) == (7, 16, 3, 7)


def test_an_error_for_the_user_shows_no_traceback_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise UserError("column 'label' is missing in texts.csv")

    with pytest.raises(SystemExit) as stop:
        job.run(main, snakemake(tmp_path / "log"))
    screen = capsys.readouterr().err
    assert stop.value.code == 1
    assert "column 'label' is missing in texts.csv" in screen
    assert "Traceback" not in screen
    assert "Traceback" in (tmp_path / "log").read_text()


def test_an_argument_that_the_rule_lacks_is_named_in_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(*, weights: Path) -> None:
        raise AssertionError(weights)

    with pytest.raises(SystemExit):
        job.run(main, snakemake(tmp_path / "log"))
    assert "has no 'weights'" in capsys.readouterr().err


def test_without_snakemake_the_signature_is_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def main(*, weights: Path, layer: int = 3) -> None:
        seen.append((weights, layer))

    monkeypatch.setattr("sys.argv", ["train_sae.py", "--weights", "w.bin", "--layer", "4"])
    job.run(main, {})
    assert seen == [(Path("w.bin"), 4)]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            MemoryError("Unable to allocate"),
            "out of memory with micro_batch=64: Unable to allocate. The next attempt",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
            "out of memory with micro_batch=64: CUDA",
        ),
        (
            OSError(28, "No space left on device"),
            "no disk space left: [Errno 28] No space left on device. Free space",
        ),
        (OSError(2, "No such file"), "unexpected FileNotFoundError"),
    ],
)
def test_errors_about_memory_and_disk_space_have_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    def main(*, micro_batch: int) -> None:
        assert micro_batch == 64
        raise error

    with pytest.raises(SystemExit) as stop:
        job.run(main, snakemake(tmp_path / "log", resources=Named(micro_batch=64)))
    assert stop.value.code == 1
    assert said in capsys.readouterr().err


def test_a_log_begins_with_process_host_and_slurm_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    job.run(lambda: None, snakemake(tmp_path / "results/tiny/logs/rule/name.log"))
    first = (tmp_path / "results/tiny/logs/rule/name.log").read_text().splitlines()[0]
    assert first.endswith(f"process {os.getpid()} on {os.uname().nodename}, Slurm job 12, GPU 3")


def test_locks_of_a_job_are_in_the_lock_log_of_its_model(tmp_path: Path) -> None:
    def main() -> None:
        with files.lock(tmp_path / "state"):
            pass

    job.run(main, snakemake(tmp_path / "results/tiny/logs/train_sae/layer_00.log"))
    assert [event.event for event in lock_log.read(tmp_path / "results/tiny/logs/locks.log")] == [
        "acquired",
        "released",
    ]


def sent_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fails() -> None:
    raise UserError("wrong")


@pytest.mark.parametrize("main", [lambda: None, fails, sent_sigterm])
@pytest.mark.parametrize("by_snakemake", [True, False])
def test_what_a_job_changes_in_its_process_ends_with_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], by_snakemake: bool
) -> None:
    root, libraries = logging.getLogger(), logging.getLogger("matplotlib")
    handlers, levels = root.handlers, (root.level, libraries.level)
    terminated = signal.getsignal(signal.SIGTERM)
    shown = warnings.showwarning
    monkeypatch.setattr("sys.argv", ["script.py"])
    with pytest.raises(SystemExit) if main in (fails, sent_sigterm) else nullcontext():
        job.run(main, snakemake(tmp_path / "log") if by_snakemake else {})
    assert signal.getsignal(signal.SIGTERM) is terminated
    assert root.handlers is handlers
    assert (root.level, libraries.level) == levels
    assert warnings.showwarning is shown


def test_sigterm_ends_a_job_through_its_cleaning_up(tmp_path: Path) -> None:
    cleaned: list[str] = []

    def main() -> None:
        try:
            sent_sigterm()
        finally:
            cleaned.append("temporary files")

    with pytest.raises(SystemExit) as stop:
        job.run(main, snakemake(tmp_path / "log"))
    assert (stop.value.code, cleaned) == (143, ["temporary files"])

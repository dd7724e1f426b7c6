"""Injected faults: only in the named jobs, and only when they are due."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ghosttrack.errors import UserError
from ghosttrack.runtime import fault_injection

LOG = Path("results/tiny/logs/train_sae/layer_02.log")


def ask(monkeypatch: pytest.MonkeyPatch, **fault: object) -> None:
    monkeypatch.setenv(fault_injection.VARIABLE, json.dumps([fault]))


def test_without_the_variable_there_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fault_injection.VARIABLE, raising=False)
    assert fault_injection.observer(LOG, 8) is None


def test_a_fault_is_injected_into_the_named_job_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask(monkeypatch, job="train_sae/layer_0[12]", kind="error", after=100)
    assert fault_injection.observer(LOG.with_name("layer_03.log"), 8) is None
    step = fault_injection.observer(LOG, 8)
    assert step is not None
    step(100)
    with pytest.raises(RuntimeError, match=fault_injection.VARIABLE):
        step(101)


def test_a_job_without_a_name_is_named_by_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    ask(monkeypatch, job="fetch_corpus", kind="error")
    assert fault_injection.observer(Path("results/tiny/logs/fetch_corpus.log"), 0) is not None
    assert fault_injection.observer(LOG, 0) is None


def test_out_of_memory_is_the_error_of_torch_and_not_raised_for_a_smaller_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    ask(monkeypatch, job="train_sae/*", kind="out_of_memory", batch_above=2048)
    assert fault_injection.observer(LOG, 2048) is None
    step = fault_injection.observer(LOG, 4096)
    assert step is not None
    with pytest.raises(torch.OutOfMemoryError):
        step(1)


def test_no_space_is_the_error_of_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    ask(monkeypatch, job="*", kind="no_space")
    step = fault_injection.observer(LOG, 0)
    assert step is not None
    with pytest.raises(OSError, match="No space left"):
        step(1)


def test_kill_leaves_no_time_to_clean_up() -> None:
    code = (
        "from ghosttrack.runtime import fault_injection; "
        "fault_injection.inject([fault_injection.Fault('a', 'kill')], 1)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(fault_injection.__file__).parents[2])}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode
        == -signal.SIGKILL
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected a JSON list"),
        ('[{"jobs": "a"}]', "expected a JSON list"),
        ('[{"job": "a", "kind": "x"}]', "'x'"),
    ],
)
def test_an_invalid_fault_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv(fault_injection.VARIABLE, text)
    with pytest.raises(UserError, match=said):
        fault_injection.observer(LOG, 8)

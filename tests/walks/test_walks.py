"""Random walks through what people do to a run: no walk ends with exit code 0 and other bytes than a run from scratch.

GHOSTTRACK_WALKS sets their number, GHOSTTRACK_SEED replays those of an earlier run, whose first lines print it.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.conftest import ROOT, SEED
from tests.walks.workflow.scripts.work import content

pytestmark = pytest.mark.e2e

WORKFLOW = Path(__file__).parent / "workflow"
WALKS = int(os.environ.get("GHOSTTRACK_WALKS") or 12)
STEPS = 9
# Results of every run, those of a layer behind the others.
FILES = ("datasets/d/examples", "evaluation/metrics", "report.html")
OF_LAYER = ("activations/layer_{}.json", "saes/layer_{}/weights", "saes/layer_{}/cfg")
RULES = ("fetch", "extract", "train", "measure", "report")
NAMES = st.sampled_from([*FILES, *(name.format(layer) for name in OF_LAYER for layer in (1, 2, 3))])


def expected(settings: dict[str, Any], data: bytes, code: str) -> dict[str, bytes]:
    """Every result of a run from scratch, by its path below results/m."""
    home, layers = "results/m/", settings["layers"]
    first = layers[len(layers) // 2]
    made = {FILES[0]: content(home + FILES[0], {"code": code}, [data])}
    for layer in layers:
        name = OF_LAYER[0].format(layer)
        made[name] = content(
            home + name, {"site": settings["site"], "code": code}, [made[FILES[0]]]
        )
    for layer in [first, *(layer for layer in layers if layer != first)]:
        begun = [] if layer == first else [made[OF_LAYER[1].format(first)]]
        for name in (each.format(layer) for each in OF_LAYER[1:]):
            params = {"sae": {"k": settings["topk"], "epochs": 1}, "code": code}
            made[name] = content(home + name, params, [made[OF_LAYER[0].format(layer)], *begun])
    params = {"layers": layers, "seed": settings["seed"], "code": code}
    weights = [made[OF_LAYER[1].format(layer)] for layer in layers]
    made[FILES[1]] = content(home + FILES[1], params, [*weights, made[FILES[0]]])
    cfgs = [made[OF_LAYER[2].format(layer)] for layer in layers]
    made[FILES[2]] = content(home + FILES[2], {"code": code}, [made[FILES[1]], *cfgs])
    return made


class Walk(RuleBasedStateMachine):
    """One run's life: settings and files change, results are lost, damaged, copied, and runs fail or are killed."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="walk "))
        self.house = self.base / "house"
        shutil.copytree(WORKFLOW, self.house, ignore=shutil.ignore_patterns("__pycache__"))
        self.asked: dict[str, Any] = {
            "topk": 16,
            "site": "resid_post",
            "seed": 0,
            "layers": [1, 2],
            "budget": False,
            "path": "mine.csv",
        }
        self.data, self.code = b"text,label\n", "c0"

    @property
    def results(self) -> Path:
        return self.house / "results" / "m"

    def teardown(self) -> None:
        try:
            if (self.house / "mine.csv").exists():
                assert self.snakemake() == 0, self.said()
                self.check()
                assert self.snakemake() == 0
                assert "Nothing to be done" in self.said()
        finally:
            shutil.rmtree(self.base)

    # ---- what a person does
    @initialize()
    def first_run(self) -> None:
        self.write_inputs()
        assert self.snakemake() == 0, self.said()
        self.check()

    @rule(
        key=st.sampled_from(["topk", "site", "seed", "layers", "budget", "path"]),
        choice=st.integers(0, 2),
    )
    def change_a_setting(self, key: str, choice: int) -> None:
        choices: dict[str, list[Any]] = {
            "topk": [8, 16, 32],
            "site": ["resid_post", "mlp_out", "attn_out"],
            "seed": [0, 1, 2],
            "layers": [[1, 2], [1, 2, 3], [2]],
            "budget": [False, True, True],
            "path": ["mine.csv", "other/mine.csv", "theirs.csv"],
        }
        self.asked[key] = choices[key][choice]
        self.write_inputs()

    @rule(rows=st.integers(0, 3), old=st.booleans())
    def replace_the_data(self, rows: int, old: bool) -> None:
        self.data = b"text,label\n" + b"a,1\n" * rows
        self.write_inputs()
        if old:
            os.utime(self.house / self.asked["path"], (1000, 1000))

    @rule(code=st.sampled_from(["c0", "c1"]))
    def edit_the_code(self, code: str) -> None:
        self.code = code
        self.write_inputs()

    @rule()
    def run(self) -> None:
        if self.snakemake() == 0:
            self.check()
        else:
            raise AssertionError(self.said())

    @rule()
    def dry_run(self) -> None:
        assert self.snakemake("-n") == 0, self.said()

    @rule(kind=st.sampled_from(["error", "kill"]), name=st.sampled_from(RULES))
    def run_with_a_fault(self, kind: Literal["error", "kill"], name: str) -> None:
        if self.snakemake(WALK_FAULT=f"{kind} {name}") == 0:
            self.check()

    @rule(seconds=st.floats(0.8, 4.0))
    def kill_the_run(self, seconds: float) -> None:
        self.snakemake(kill_after=seconds)

    @rule()
    def delete_snakemakes_folder(self) -> None:
        shutil.rmtree(self.house / ".snakemake", ignore_errors=True)

    @rule(with_snakemake=st.booleans(), dates=st.booleans())
    def copy_the_folder(self, with_snakemake: bool, dates: bool) -> None:
        copy = Path(
            shutil.copytree(
                self.house,
                self.base / "copy",
                symlinks=True,
                copy_function=shutil.copy2 if dates else shutil.copy,
            )
        )
        shutil.rmtree(self.house)
        copy.rename(self.house)
        if not with_snakemake:
            self.delete_snakemakes_folder()

    @rule(seed=st.integers(0, 2**32))
    def change_dates(self, seed: int) -> None:
        dice = random.Random(seed)
        for path in sorted(path for path in self.results.rglob("*") if path.is_file()):
            when = dice.randrange(1, 4 * 10**9)
            os.utime(path, (when, when))

    @rule(name=NAMES)
    def lose_a_result(self, name: str) -> None:
        (self.results / name).unlink(missing_ok=True)

    @rule(name=NAMES, kind=st.sampled_from(["flip", "cut", "empty"]), quiet=st.booleans())
    def damage_a_result(self, name: str, kind: str, quiet: bool) -> None:
        path = self.results / name
        if path.exists() and path.stat().st_size:
            before, stat = bytearray(path.read_bytes()), path.stat()
            if kind == "flip":
                before[len(before) // 2] ^= 1
            path.write_bytes(
                {"flip": bytes(before), "cut": bytes(before[: len(before) // 2]), "empty": b""}[
                    kind
                ]
            )
            if quiet:
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    @rule(name=NAMES, kind=st.sampled_from(["lose", "cut"]))
    def damage_a_record(self, name: str, kind: str) -> None:
        path = self.results / "records" / f"{name}.json"
        if path.exists():
            text = path.read_bytes()
            path.unlink() if kind == "lose" else path.write_bytes(text[: len(text) // 2])

    @rule()
    def swap_two_results(self) -> None:
        first, second = (self.results / OF_LAYER[1].format(layer) for layer in (1, 2))
        if first.exists() and second.exists():
            one, other = first.read_bytes(), second.read_bytes()
            first.write_bytes(other)
            second.write_bytes(one)

    # ---- how it is run and judged
    def write_inputs(self) -> None:
        path = self.house / self.asked["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.data)
        (self.house / "code.txt").write_text(self.code)

    def snakemake(self, *options: str, kill_after: float = 0, **environment: str) -> int:
        """Exit code of the command that a user would give, as `make run` gives it: without a stale lock."""
        shutil.rmtree(self.house / ".snakemake" / "locks", ignore_errors=True)
        config = [f"{key}={value}" for key, value in self.asked.items()]
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "-c2",
            "--keep-going",
            "--rerun-incomplete",
            *options,
            "--config",
            *config,
        ]
        with (
            (self.base / "screen").open("w") as screen,
            subprocess.Popen(
                command,
                cwd=self.house,
                env={**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts"), **environment},
                stdout=screen,
                stderr=screen,
                start_new_session=True,
            ) as process,
        ):
            try:
                return process.wait(kill_after or 120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                assert kill_after, "a run of the walk takes more than two minutes"
                return -9

    def said(self) -> str:
        return (self.base / "screen").read_text()[-3000:]

    def check(self) -> None:
        """After exit code 0: the targets stand, and every result that stands is what a run from scratch would have written."""
        wanted = expected(self.asked, self.data, self.code)
        for name, bytes_ in wanted.items():
            path = self.results / name
            if name == "report.html" or name.endswith("weights") or path.exists():
                assert path.exists(), f"{name} is missing\n{self.said()}"
                assert path.read_bytes() == bytes_, f"{name} is wrong\n{self.said()}"


def test_no_walk_ends_well_with_other_bytes_than_a_run_from_scratch() -> None:
    settings = hypothesis.settings(
        max_examples=WALKS,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[
            hypothesis.Phase.generate
        ],  # a walk takes seconds: to make a failing one shorter takes too long
    )
    try:
        run_state_machine_as_test(hypothesis.seed(SEED)(Walk), settings=settings)
    except BaseException as error:
        error.add_note(
            f"replay: GHOSTTRACK_SEED={SEED} GHOSTTRACK_WALKS={WALKS} pytest tests/walks"
        )
        raise

"""Mutation testing: which small faults does no unit test notice?

    python benchmarks/mutants.py --sample 40 --seed 0

Each mutant is one file with one change: a comparison, an operator, a number, a negated condition, a
deleted call or two swapped arguments. The unit tests of the file run on a copy of the checkout. A
mutant is killed if a test fails, or if the tests take far longer than without it. It survives if
all tests pass: a test is missing, or the change has no effect.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from measure import show

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "workflow_scripts/ghosttrack"
# The unit tests of each file that is mutated, the fastest first.
TESTS = {
    "evaluation/ledger.py": ["evaluation/test_ledger.py"],
    "statistics.py": ["test_statistics.py", "test_codes.py"],
    "detection/splits.py": ["detection/test_splits.py"],
    "detection/audit.py": ["detection/test_audit.py"],
    "tracks/association.py": ["tracks/test_association.py"],
    "tracks/tracking.py": ["tracks/test_tracking.py"],
    "activations/writer.py": [
        "activations/test_store.py",
        "activations/test_writer.py",
        "activations/test_int8s.py",
        "activations/test_damage.py",
    ],
    "activations/reader.py": [
        "activations/test_reader.py",
        "activations/test_int8s.py",
        "activations/test_store.py",
        "activations/test_damage.py",
    ],
    "runtime/files.py": ["runtime/test_files.py", "runtime/test_lock_log.py"],
    "sae/checkpoints.py": ["sae/test_sae_checkpoints.py"],
    "facts/answers.py": ["facts/test_answers.py"],
    "facts/answer_words.py": ["facts/test_answers.py"],
}
# Constants that are not mutated: block sizes, retries, and the number of rows in a message.
UNCHANGED = {"_BLOCK", "_TRIES", "_PAUSE", "_NAMED", "SAMPLED_BLOCKS", "BLOCK_BYTES"}
# Keyword arguments that only change the speed, or guard against the impossible.
KEYWORDS = {"strict", "copy", "ignore_errors", "maxsize"}
# Calls that only report, and functions whose arguments commute.
REPORTS, SYMMETRIC = ("log", "progress"), ("min", "max")
# Fields of a syntax tree without behaviour.
FIELDS = {"annotation", "returns", "decorator_list", "bases"}

COMPARISONS: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


class Position(NamedTuple):
    """Position in the syntax tree: a field of the parent node, and an index if it is a list."""

    parent: ast.AST
    field: str
    position: int | None

    def put(self, node: ast.AST) -> None:
        """Set the node at this position."""
        if self.position is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.position] = node


class Mutant(NamedTuple):
    """One change of one file: the old and the new node at a position of the syntax tree."""

    file: str
    tree: ast.Module
    place: Position
    old: ast.AST
    new: ast.AST
    line: int

    @property
    def change(self) -> str:
        """The change in one line: the surrounding expression, or a part of a long one."""
        around = self.place.parent if isinstance(self.place.parent, ast.expr) else None
        before = " ".join(ast.unparse(around or self.old).split())
        self.place.put(self.new)
        after = " ".join(ast.unparse(around or self.new).split())
        self.place.put(self.old)
        same = next(
            (
                at
                for at, (one, other) in enumerate(zip(before, after, strict=False))
                if one != other
            ),
            min(len(before), len(after)),
        )
        start = max(0, same - 25)
        return f"{before[start : start + 50]} -> {after[start : start + 50]}"

    @property
    def source(self) -> str:
        """Text of the changed file."""
        self.place.put(self.new)
        text = ast.unparse(self.tree)
        self.place.put(self.old)
        return text


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    tree = ast.parse(source)
    all_mutants = [
        Mutant(
            file,
            tree,
            place,
            node,
            new,
            getattr(node, "lineno", getattr(place.parent, "lineno", 0)),
        )
        for place, node in _places(tree)
        for new in _changes(node, place)
    ]
    return sorted(all_mutants, key=lambda mutant: mutant.line)


def _places(parent: ast.AST) -> Iterator[tuple[Position, ast.AST]]:
    """Every node whose change may change a result: no annotations, messages or assertions."""
    for field, value in ast.iter_fields(parent):
        if field in FIELDS:
            continue
        for position, node in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(node, ast.AST) and not _without_effect(node):
                yield Position(parent, field, position if isinstance(value, list) else None), node
                if not isinstance(node, ast.Raise):
                    yield from _places(node)


def _without_effect(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        root = ast.unparse(node.value).partition("(")[0].partition(".")[0]
        return not isinstance(node.value, ast.Call) or root in REPORTS
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {
            each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
        }
        return "__all__" in names or bool(names & UNCHANGED)
    return isinstance(node, ast.JoinedStr | ast.Assert) or (
        isinstance(node, ast.keyword) and node.arg in KEYWORDS
    )


def _changes(node: ast.AST, place: Position) -> Iterator[ast.AST]:
    """The replacements of a node."""
    if place.field in ("test", "ifs") and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type]
    match node:
        case ast.Compare():
            for position, operator in enumerate(node.ops):
                for other in COMPARISONS[type(operator)]:
                    yield _with(
                        node, ops=[*node.ops[:position], other(), *node.ops[position + 1 :]]
                    )
        case ast.BinOp() if type(node.op) in OPERATORS and not any(
            map(_is_text, (node.left, node.right))
        ):
            yield _with(node, op=OPERATORS[type(node.op)]())
        case ast.AugAssign() if type(node.op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float() as number):
            step = 1 if isinstance(number, int) else number / 10 or 0.1
            yield from (ast.Constant(number + step), ast.Constant(number - step))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield ast.Pass()
        case ast.Call(args=[first, second, *others]) if ast.unparse(node.func) not in SYMMETRIC:
            if ast.unparse(first) != ast.unparse(second):
                yield _with(node, args=[second, first, *others])


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def sample(groups: Iterable[Sequence[Mutant]], size: int, seed: int) -> list[Mutant]:
    """Draw `size` random mutants, equally many from each group as far as possible."""
    shuffled = [
        random.Random(f"{seed} {number}").sample(group, len(group))
        for number, group in enumerate(groups)
    ]
    turns = (mutant for turn in zip_longest(*shuffled) for mutant in turn if mutant is not None)
    drawn = [mutant for mutant, _ in zip(turns, range(size), strict=False)]
    return sorted(drawn, key=lambda mutant: (mutant.file, mutant.line))


class TestRun(NamedTuple):
    """Result of one run of tests."""

    code: int | None  # exit code; None: stopped at the time limit
    output: str
    seconds: float


def run_tests(checkout: Path, file: str, limit: float) -> TestRun:
    """Run the unit tests of `file` in a copy of the checkout until the first failure."""
    tests = [f"tests/unit/{name}" for name in TESTS[file]]
    # Without bytecode files: two mutants of equal size within one second would share one.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        return TestRun(process.returncode, output, time.monotonic() - began)
    except subprocess.TimeoutExpired:
        return TestRun(None, "", limit)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also the processes that a test started
        process.wait()


def time_limit(checkout: Path, file: str) -> float:
    """Seconds after which a mutant of `file` counts as killed: 10 + 3 x the unmodified run."""
    finished = run_tests(checkout, file, 600)
    if finished.code != 0:
        raise SystemExit(f"the tests of {file} fail on the unchanged file:\n{finished.output}")
    return 10 + 3 * finished.seconds


def verdict(checkout: Path, mutant: Mutant, limit: float) -> str:
    """Run the tests on the mutant; return "survived", "killed" or "killed (time limit)"."""
    path = checkout / PACKAGE / mutant.file
    original = path.read_text()
    path.write_text(mutant.source)
    try:
        code = run_tests(checkout, mutant.file, limit).code
    finally:
        path.write_text(original)
    return "survived" if code == 0 else "killed" if code is not None else "killed (time limit)"


def main() -> None:
    """Sample mutants, run the tests on each, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sample", type=int, default=40, help="number of mutants, spread evenly over the files"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--files", nargs="+", choices=sorted(TESTS), default=list(TESTS), metavar="FILE"
    )
    chosen = parser.parse_args()
    made = {file: mutants(file, (ROOT / PACKAGE / file).read_text()) for file in chosen.files}
    drawn = sample(made.values(), chosen.sample, chosen.seed)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        checkout = Path(folder) / "checkout"
        left_out = shutil.ignore_patterns(".*", "results", "__pycache__")
        shutil.copytree(ROOT, checkout, symlinks=True, ignore=left_out)
        limits = {file: time_limit(checkout, file) for file in {mutant.file for mutant in drawn}}
        for mutant in drawn:
            rows.append(
                [
                    mutant.file,
                    str(mutant.line),
                    mutant.change,
                    verdict(checkout, mutant, limits[mutant.file]),
                ]
            )
            sys.stderr.write("  ".join(rows[-1]) + "\n")
    killed = sum(row[-1] != "survived" for row in rows)
    available = sum(map(len, made.values()))
    title = f"{killed} of {len(rows)} killed; seed {chosen.seed}, {available} possible mutants"
    show(title, ["file", "line", "mutation", "verdict"], rows)


if __name__ == "__main__":
    main()

"""Mutants of `benchmarks/mutants.py`: each is a different program with a change of behaviour."""

import ast
from pathlib import Path

import mutants
import pytest

PACKAGE = mutants.ROOT / mutants.PACKAGE

CODE = '''"""A docstring of 3 words."""
__all__ = ["f"]
_TRIES = 4

@cache(size=2)
def f(a: Literal[1], b: int = 5) -> Literal[2]:
    """Less than 1."""
    log.info("number %d", 6)
    assert a < 7
    for one, other in zip(a, b, strict=True):
        if not one:
            raise ValueError(f"{a + 8} is above {9}")
        g(one, other)
    return f"{10}" + "text"
'''


@pytest.mark.parametrize("file", mutants.TESTS)
def test_each_mutant_of_a_file_is_another_program(file: str) -> None:
    source = (PACKAGE / file).read_text()
    original = ast.unparse(ast.parse(source))
    found = mutants.mutants(file, source)
    assert len(found) > 20
    for mutant in found[::10]:
        assert mutant.source != original
        ast.parse(mutant.source)
        assert mutant.change.split(" -> ")[0] != mutant.change.split(" -> ")[1]
        assert ast.unparse(mutant.tree) == original, "the change is taken back"


def test_messages_annotations_docstrings_and_logs_are_left_alone() -> None:
    found = mutants.mutants("f.py", CODE)
    assert sorted(mutant.change for mutant in found) == [
        "5 -> 4",
        "5 -> 6",
        "g(one, other) -> g(other, one)",
        "g(one, other) -> pass",
        "not one -> one",
        "raise ValueError(f'{a + 8} is above {9}') -> pass",
        "zip(a, b, strict=True) -> zip(b, a, strict=True)",
    ]


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("a < b", {"a <= b", "a >= b"}),
        ("a == b", {"a != b"}),
        ("a < b <= c", {"a <= b <= c", "a >= b <= c", "a < b < c", "a < b > c"}),
        ("a + b", {"a - b"}),
        ("a + 'text'", set()),
        ("x[1:]", {"x[2:]", "x[0:]"}),
        ("x[-1]", {"x[1]", "x[-2]", "x[-0]"}),
        ("f(0.5)", {"f(0.55)", "f(0.45)"}),
        ("f(True)", {"f(False)"}),
        ("a and b", {"a or b"}),
        ("a if b else c", {"a if not b else c"}),
        ("[a for a in b if c]", {"[a for a in b if not c]"}),
        ("f(a, b, c)", {"f(b, a, c)"}),
        ("f(a, a)", set()),
        ("max(a, b)", set()),
    ],
)
def test_an_expression_has_its_known_mutants(code: str, changes: set[str]) -> None:
    found = {
        mutant.source.removeprefix("x = ") for mutant in mutants.mutants("f.py", f"x = {code}")
    }
    assert found == changes


def test_a_sample_depends_on_the_seed_alone_and_is_shared_out_evenly() -> None:
    groups = [
        mutants.mutants(name, f"x = {code}")
        for name, code in (("a", "1 + 2 + 3 + 4"), ("b", "1"), ("c", "1 < 2"))
    ]
    first, again, other = (
        [(mutant.file, mutant.change) for mutant in mutants.sample(groups, 8, seed)]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert [name for name, _ in first] == ["a"] * 3 + ["b"] * 2 + ["c"] * 3
    assert len(mutants.sample(groups, 1_000, 0)) == sum(map(len, groups))


def test_the_tests_of_each_file_exist() -> None:
    for names in mutants.TESTS.values():
        assert all(Path(mutants.ROOT / "tests/unit" / name).is_file() for name in names)

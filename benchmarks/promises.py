"""docs/promises.md from promises.yaml: what was promised, and what proves it.

python benchmarks/promises.py           write the page
python benchmarks/promises.py --check   exit code 1 if the page is out of date or a number of
                                        it is in none of its tables and tests
"""

import argparse
import ast
import re
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any, Literal

import measure
import page
import yaml
from pydantic import BaseModel, ConfigDict, Field

SOURCE = Path(__file__).with_suffix(".yaml")
PAGE = measure.ROOT / "docs" / "promises.md"
TESTS = measure.ROOT / "tests"
# A number, and not a part of a name such as int8s, GPT-2 or layer_02.
NUMBER = re.compile(r"(?<![\w.,-])(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))(?![\w-]|\.\d)")
HEAD = """# Promises

What the original work and the design of this project promised, what the original reached, and
what this project reaches. `make docs` writes this page from `benchmarks/promises.yaml`. A test
fails if a number in the column "this project" is in none of the tables and tests that the row
names.

- *measured*: by a part of [the benchmarks](reference/benchmarks.md), on the machine and date that
  the row names.
- *computed*: from sizes and assumed speeds, by the same benchmarks.
- *tested*: by the named tests, on any machine, at each change.
"""


class Entry(BaseModel):
    """One promise; see promises.yaml."""

    model_config = ConfigDict(extra="forbid")
    promise: str
    original: str
    here: str
    state: Literal["kept", "partly", "not kept", "not measured"]
    how: Literal["measured", "computed", "tested"]
    tables: list[str] = Field(default_factory=list)
    tests: list[str] = Field(default_factory=list)


class Section(BaseModel):
    """A heading with its promises."""

    model_config = ConfigDict(extra="forbid")
    title: str
    text: str
    entries: list[Entry]


def sections() -> list[Section]:
    """All promises."""
    return [Section(**each) for each in yaml.safe_load(SOURCE.read_text(encoding="utf-8"))]


def text() -> str:
    """The page."""
    return "\n".join([HEAD, *map(_section, sections())])


def _section(section: Section) -> str:
    columns = ["promise", "original work", "this project", "state", "how", "evidence"]
    lines = [columns, ["---"] * len(columns), *map(_row, section.entries)]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"## {section.title}", "", *textwrap.wrap(section.text, 98), "", *table, ""])


def _row(entry: Entry) -> list[str]:
    state = entry.state if entry.state == "kept" else f"**{entry.state}**"
    how = "" if entry.state == "not measured" and entry.how == "measured" else entry.how
    evidence = [_of_table(name) for name in entry.tables]
    evidence += [f"`make test ARGS={_file_of(name)}`: `{name}`" for name in entry.tests]
    return [entry.promise, entry.original, entry.here, state, how, "<br>".join(evidence)]


def _of_table(name: str) -> str:
    """Command, machine and date of a table."""
    found = page.table(name)
    if found is None:
        raise ValueError(f"promises.yaml names the table {name}: benchmarks/results has none")
    first = found.iloc[0]
    return f"`{name}.csv`: `{first['command']}`; {first['machine']}; {first['date']}"


@cache
def _tests() -> dict[str, str]:
    """The file of every test by name, relative to the project."""
    files: dict[str, str] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            files[name] = path.relative_to(measure.ROOT).as_posix()
    return files


def _file_of(test: str) -> str:
    if test not in _tests():
        raise ValueError(f"promises.yaml names {test}, which is no test: correct the name")
    return _tests()[test]


def _constants(test: str) -> list[float]:
    """Numbers in the name and the code of a test, and in the constants of its file."""
    tree = ast.parse((measure.ROOT / _file_of(test)).read_text(encoding="utf-8"))
    kept = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        or (isinstance(node, ast.FunctionDef) and node.name == test)
    ]
    code = [
        each.value for node in kept for each in ast.walk(node) if isinstance(each, ast.Constant)
    ]
    words = [str(value) for value in (*code, test.replace("_", " "))]
    return [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", " ".join(words))]


def unproven(entry: Entry) -> list[str]:
    """Numbers of the column "this project" that are in none of the entry's tables and tests."""
    stated = NUMBER.findall(re.sub(r"`[^`]*`", "", entry.here))
    literals = [number for name in entry.tests for number in _constants(name)]
    cells = [value for name in entry.tables for value in _numbers(page.table(name))]
    return [
        number
        for number in stated
        if not any(_rounds_to(value, number) for value in [*cells, *literals])
    ]


def _numbers(found: Any) -> list[float]:
    """All cells of a table that are numbers, and the numbers in its cases."""
    if found is None:
        return []
    kept = found.drop(columns=list(measure.ORIGIN))
    words = " ".join(map(str, kept.to_numpy().ravel().tolist()))
    return [
        float(word.replace(",", ""))
        for word in re.findall(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?", words)
    ]


def _rounds_to(value: float, number: str) -> bool:
    """Whether a measured value, rounded to the decimals of the stated number, is that number."""
    decimals = len(number.partition(".")[2])
    return round(value, decimals) == float(number.replace(",", ""))


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    wrong = [
        f"{entry.promise!r}: {', '.join(missing)}"
        for section in sections()
        for entry in section.entries
        if (missing := unproven(entry))
    ]
    if wrong:
        sys.exit(
            "these numbers of promises.yaml are in none of the tables and tests of their entry; "
            "correct them or name their source:\n" + "\n".join(wrong)
        )
    if not given.check:
        PAGE.write_text(text(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text():
        sys.exit("docs/promises.md is not what promises.yaml gives: make docs")


if __name__ == "__main__":
    main()

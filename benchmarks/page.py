"""docs/reference/benchmarks.md and its figures, from the tables in benchmarks/results/.

python benchmarks/page.py           write the page and the figures
python benchmarks/page.py --check   exit code 1 if the page is not what the tables give
"""

import argparse
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import measure
import pandas as pd
from parts import OTHERS, PARTS, RESULTS, Figure, Part

PAGE = measure.ROOT / "docs" / "reference" / "benchmarks.md"
FIGURES = PAGE.with_name("benchmark_figures")
WIDTH = 98
HEAD = """# Benchmarks

`make benchmarks` writes this page, its figures, and the tables in `benchmarks/results/` that they
are made of. Each part is one script and can be run alone:
`.venv/bin/python benchmarks/run_all.py PART`. The tables hold more digits, and in each row the
machine, the versions, the commit, the date and the command. Each part runs its references in the
same process, in turns. Times depend on the machine and its load. The ratios of a table depend on
them less.

A part that needs what the machine lacks (a finished run, other projects, a browser, Slurm) is not
run. `.venv/bin/python benchmarks/run_all.py --list` names what is missing. A commit that ends in
`+` had changes that were not committed.
"""


def table(stem: str) -> pd.DataFrame | None:
    """A csv table as text cells; None if it was not measured."""
    path = RESULTS / f"{stem}.csv"
    if not path.exists():
        return None
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def text() -> str:
    """The page."""
    return "\n".join([HEAD, *(_section(part) for part in (*PARTS, *OTHERS))])


def write() -> None:
    """Write the page and the figures."""
    for part in PARTS:
        if part.figure and (found := table(part.figure.table)) is not None:
            draw(found, part.figure, FIGURES / f"{part.name}.svg")
    PAGE.write_text(text(), encoding="utf-8")


def _section(part: Part) -> str:
    """Heading, description and command of a part, and its tables or that it was not run."""
    lines = [f"## {part.name}", "", *textwrap.wrap(part.about, WIDTH), ""]
    found = [(stem, each) for stem in part.tables if (each := table(stem)) is not None]
    if not found:
        return "\n".join([*lines, "Not yet run.", ""])
    if part.figure and (FIGURES / f"{part.name}.svg").exists():
        picture = f"![{part.figure.value} by {part.figure.label}]"
        lines += [f"{picture}({FIGURES.name}/{part.name}.svg)", ""]
    for stem, each in found:
        lines += _origin(stem, each)
        for case, rows in each.groupby("case", sort=False):
            lines += [*textwrap.wrap(f"{case}:", WIDTH), "", *_rows(part, rows), ""]
    return "\n".join(lines)


def _origin(stem: str, found: pd.DataFrame) -> list[str]:
    """Where and how a table was measured."""
    first = found.iloc[0]
    sentence = (
        f"`benchmarks/results/{stem}.csv`: {first['machine']}; {first['versions']}; commit "
        f"{first['code'] or 'unknown'}; {first['date']}."
    )
    lines = textwrap.wrap(sentence, WIDTH, break_on_hyphens=False)
    return [*lines, "", "```text", *_folded(first["command"]), "```", ""]


def _folded(command: str) -> list[str]:
    """A command in lines of at most `WIDTH` characters."""
    lines = textwrap.wrap(command, WIDTH - 6, break_on_hyphens=False, break_long_words=False)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _rows(part: Part, found: pd.DataFrame) -> list[str]:
    """A Markdown table; of the mutants only those that survived."""
    columns = [name for name in found.columns if name not in ("case", *measure.ORIGIN)]
    if part.name == "mutants":
        found = found[found["verdict"] == "survived"]
    cells = [[shown(value) for value in row] for row in found[columns].to_numpy().tolist()]
    names = ["" if name == "what" else name for name in columns]
    rule = ["---"] * len(columns)
    return [f"| {' | '.join(row)} |" for row in [names, rule, *cells]]


def shown(value: str) -> str:
    """A cell: a number with three significant digits, or its text."""
    try:
        number = float(value)
    except ValueError:
        return value.replace("|", "\\|").replace("<", "&lt;")
    if number == int(number) if abs(number) < 1e15 else False:
        return f"{int(number):,}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def draw(found: pd.DataFrame, figure: Figure, path: Path) -> None:
    """Bars of a value by label, or a line where all labels are numbers; one series a case."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    mpl.rcParams.update({"svg.hashsalt": path.stem, "svg.fonttype": "none"})
    kept = found[found[figure.value] != ""]
    canvas = Canvas(figsize=(7, 0.6 + 0.28 * max(len(kept), 6)), layout="constrained")
    axes = canvas.add_subplot()
    labels = pd.to_numeric(kept[figure.label], errors="coerce")
    values = kept[figure.value].astype(float)
    several = kept["case"].nunique() > 1
    if labels.notna().all() and not all(a == b for a, b in pairwise(labels)):
        for case, rows in kept.groupby("case", sort=False):
            axes.plot(labels[rows.index], values[rows.index], "o-", label=str(case)[:60])
        axes.set(xlabel=figure.label, ylabel=figure.value)
        if several:
            axes.legend(frameon=False)
    else:
        places = range(len(kept))[::-1]
        names = [
            f"{row[figure.label]} ({str(row['case'])[:40]})" if several else row[figure.label]
            for _, row in kept.iterrows()
        ]
        axes.barh(list(places), list(values), color="0.45")
        axes.set_yticks(list(places), names, fontsize=7)
        axes.set_xlabel(figure.value)
    path.parent.mkdir(exist_ok=True)
    canvas.savefig(path, metadata={"Date": None})


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args().check:
        write()
    elif PAGE.read_text(encoding="utf-8") != text():
        sys.exit("docs/reference/benchmarks.md is not what benchmarks/results/ gives: make docs")


if __name__ == "__main__":
    main()

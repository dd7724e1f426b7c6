"""Join the sweep tables of all layers, and draw them."""

from pathlib import Path

import pandas as pd

from ghosttrack.report import figures as drawing
from ghosttrack.report.sweep_figure import draw
from ghosttrack.runtime import files, job, tables


def main(
    *,
    arms: list[Path],
    stability: list[Path],
    all_arms: Path,
    all_stability: Path,
    figures: list[Path],
) -> None:
    """Write the joined tables, and the figure in every format."""
    joined = [
        pd.concat([tables.read_csv(path) for path in paths], ignore_index=True)
        for paths in (arms, stability)
    ]
    for path, table in zip((all_arms, all_stability), joined, strict=True):
        with files.atomic_write(path) as stream:
            tables.write_csv(table, stream)
    drawing.write(draw, joined, figures)


if __name__ == "__main__":
    job.run(main, globals())

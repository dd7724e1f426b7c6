"""Draw what detectors reach on data sets that they were not trained on."""

from pathlib import Path

from ghosttrack import job
from ghosttrack.report import figures as drawing
from ghosttrack.report import tables, transfer_figure


def main(*, transfer: Path, figures: list[Path]) -> None:
    """Write the figure in every format."""
    drawing.write(transfer_figure.transfer, [tables.read(transfer, tables.TRANSFER)], figures)


if __name__ == "__main__":
    job.run(main, globals())

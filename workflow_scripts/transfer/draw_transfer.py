"""Draw the AUROC of detectors on data sets outside their training set."""

from pathlib import Path

from ghosttrack import scores as registry
from ghosttrack.report import figures as drawing
from ghosttrack.report import transfer_figure
from ghosttrack.runtime import job


def main(*, transfer: Path, figures: list[Path]) -> None:
    """Write the figure in every format."""
    drawing.write(transfer_figure.transfer, [registry.read(transfer, registry.TRANSFER)], figures)


if __name__ == "__main__":
    job.run(main, globals())

"""Set the models of one run side by side."""

from pathlib import Path

import ghosttrack
from ghosttrack import files, job
from ghosttrack.report import comparison, tables


def main(
    *,
    metrics: list[Path],
    ledgers: list[Path],
    table: Path,
    page: Path,
    models: list[str],
    controls: list[str] | None = None,
) -> None:
    """Join the models' metrics into one table and write the page; `metrics` and `ledgers` follow `models`."""
    found = {name: tables.read(path, tables.METRICS) for name, path in zip(models, metrics, strict=True)}
    claims = {name: tables.read(path, tables.LEDGER) for name, path in zip(models, ledgers, strict=True)}
    with files.atomic_write(table) as stream:
        comparison.table(found).to_csv(stream, index=False)
    with files.atomic_write(page) as stream:
        stream.write(comparison.render(found, claims, controls or [], ghosttrack.__version__))


if __name__ == "__main__":
    job.run(main, globals())

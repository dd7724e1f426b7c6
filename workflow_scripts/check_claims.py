"""Fail when a headline claim is not established (`strict: true`)."""

from pathlib import Path

from ghosttrack import files, job
from ghosttrack.evaluation import ledger as claim_ledger
from ghosttrack.report import tables


def main(*, ledger: Path, passed: Path) -> None:
    """Read the ledger; write `passed` when it holds."""
    claim_ledger.require_headline(tables.read(ledger, tables.LEDGER))
    files.write_json(passed, {"established": claim_ledger.HEADLINE})


if __name__ == "__main__":
    job.run(main, globals())

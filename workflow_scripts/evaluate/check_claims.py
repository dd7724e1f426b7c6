"""Fail if the headline claim is not established (`strict: true`)."""

from pathlib import Path

from ghosttrack import scores as registry
from ghosttrack.evaluation import ledger as claim_ledger
from ghosttrack.runtime import files, job


def main(*, ledger: Path, passed: Path) -> None:
    """Read the ledger, and write `passed` if the headline claim is established."""
    claim_ledger.require_headline(registry.read(ledger, registry.LEDGER))
    files.write_json(passed, {"established": registry.HEADLINE})


if __name__ == "__main__":
    job.run(main, globals())

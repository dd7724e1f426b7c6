"""Check every activation store that is on disk against its manifest, and report all that are damaged."""

import logging
from pathlib import Path

from ghosttrack import job
from ghosttrack.activations import verification
from ghosttrack.errors import UserError
from ghosttrack.progress import Progress

log = logging.getLogger("ghosttrack")


def main(*, models: list[str], results: Path = Path("results")) -> None:
    """Log a table per model and what killed jobs left; raise when a store is damaged, naming each and what to delete."""
    problems: list[str] = []
    for model in models:
        groups, findings = verification.groups(results / model), []
        progress = Progress(f"verifying {model}", sum(len(group.stores) for group in groups), "stores")
        for group in groups:
            findings.append(verification.check(group))
            progress.advance(len(group.stores))
        log.info("activation stores of %s:\n%s", model, verification.as_table(findings))
        for path in verification.abandoned(results / model):
            log.info("%s: left unfinished by a job that was killed; its next run goes on behind what is whole", path)
        problems += [problem for finding in findings for problem in finding.problems]
    if problems:
        raise UserError("\n".join([f"{len(problems)} activation stores are damaged:", *problems]))


if __name__ == "__main__":
    job.run(main, globals())

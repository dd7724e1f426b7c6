"""Verify all activation stores on disk against their manifests, and report all damaged ones."""

import logging
from pathlib import Path

from ghosttrack.activations import verification
from ghosttrack.errors import UserError
from ghosttrack.planning import plan
from ghosttrack.runtime import job
from ghosttrack.runtime.progress import Progress

log = logging.getLogger("ghosttrack")


def main(
    *,
    models: list[str],
    promised: list[Path],
    released: list[Path],
    results: Path = Path("results"),
) -> None:
    """Log a table per model, and what may be deleted.

    Args:
        promised: manifests that must exist.
        released: folders of training activations that may be deleted.
    Raises:
        UserError: stores are damaged or missing; lists each with its remedy.
    """
    problems: list[str] = []
    for model in models:
        groups, findings = verification.groups(results / model), []
        progress = Progress(
            f"verifying {model}", sum(len(group.stores) for group in groups), "stores"
        )
        for group in groups:
            findings.append(verification.check(group))
            progress.advance(len(group.stores))
        log.info("activation stores of %s:\n%s", model, verification.as_table(findings))
        for path in verification.abandoned(results / model):
            log.info(
                "%s: left unfinished by a killed job; its next run resumes after the last complete "
                "shard",
                path,
            )
        problems += [problem for finding in findings for problem in finding.problems]
    for sentence in verification.released(released):
        log.info(sentence)
    problems += verification.lost(promised)
    if problems:
        raise UserError(
            "\n".join(
                [f"{plan.counted(len(problems), 'problem')} in the activation stores:", *problems]
            )
        )


if __name__ == "__main__":
    job.run(main, globals())

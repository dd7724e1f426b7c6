"""`python -m ghosttrack.cli.archive RUN`: a finished run with its workflow as one zip file.

The file is an RO-Crate (https://w3id.org/ro/crate) in the profile Workflow Run Crate: a folder with
a description of every file in it, which archives of research data read.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ghosttrack.cli import crate
from ghosttrack.cli.status import HOME, datasets_of, read_config, read_value
from ghosttrack.errors import UserError
from ghosttrack.planning import plan, run_state
from ghosttrack.planning.configuration import load
from ghosttrack.settings import DatasetSettings, Settings

# Missing jobs that the error names.
SHOWN_JOBS = 3
NOTHING_DUE = "Nothing to be done"


def archive(run: Path, out: Path, words: Sequence[str], *, weights: bool = False) -> list[str]:
    """Write the archive of a finished run.

    Args:
        run: results/MODEL in the folder of the workflow.
        out: the zip file, which is replaced if it exists.
        words: KEY=VALUE settings with which the run was made, beside config/config.yaml.
        weights: whether the weights of the SAEs are in the archive, or only their digests.
    Returns:
        Data sets whose licence is not known.
    Raises:
        UserError: the run is not finished, was made with other settings or other code, or `out`
            cannot be written.
    """
    home = absolute(run)
    if not home.is_dir() or home.parent.name != "results":
        raise UserError(
            f"{run}: there is no such folder of results; give the folder of a finished run, such as "
            "results/smollm2-135m"
        )
    if out.suffix != ".zip" or not out.parent.is_dir():
        raise UserError(f"--out: {out} is no .zip file in an existing folder; name such a file")
    if not (home.parents[1] / "config" / "config.yaml").is_file():
        raise UserError(
            f"{run}: there is no config/config.yaml in {home.parents[1]}, which archive reads: if "
            "this run was moved or copied, give results/MODEL in the folder of the workflow that "
            "made it; a run that another workflow made with this one as a module cannot be archived"
        )
    # In quotation marks where Snakemake would read a number.
    name = home.name if home.name == read_value(home.name) else f'"{home.name}"'
    # The folder says which model it is: Snakemake refuses a key that occurs twice.
    others = [word for word in words if word.partition("=")[0] != "model"]
    house, given = home.parents[1], [*others, f"model={name}"]
    config = read_config(house / "config" / "config.yaml", given)
    (settings,) = load(config, HOME / "config").values()
    datasets = datasets_of(settings)
    require_finished(home, settings, datasets, given)
    require_current(home, given)
    try:
        return crate.write(crate.Run(home, settings, datasets, given, weights), HOME, out)
    except OSError as error:
        raise UserError(
            f"--out: {out} cannot be written ({error.strerror or error}); free space, or name "
            "another file"
        ) from error


def absolute(path: Path) -> Path:
    """A path without `..`; links stay, because `results` may be a link to another disk."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def require_finished(
    home: Path, settings: Settings, datasets: Mapping[str, DatasetSettings], given: Sequence[str]
) -> None:
    """Check that every job of the run has its outputs.

    Raises:
        UserError: with the missing jobs and the command that makes them.
    """
    jobs = run_state.jobs(settings, plan.waves(settings), datasets, home.parent)
    missing = [f"{job.phase} {job.name}".strip() for job in jobs if not job.done]
    if missing:
        more = ", ..." if len(missing) > SHOWN_JOBS else ""
        raise UserError(
            f"results/{home.name}: the run is not finished, {len(missing)} of {len(jobs)} jobs have "
            f"no outputs ({', '.join(missing[:SHOWN_JOBS])}{more}); give the --config values of the "
            f"run, or first run: {_command(given)}"
        )


def require_current(home: Path, given: Sequence[str]) -> None:
    """Check by a dry run that these settings, this code and these inputs made the results.

    Raises:
        UserError: with the first reason why a job would run again.
    """
    planned = _dry_run(home.parents[1], given)
    said = planned.stdout + planned.stderr
    if planned.returncode == 0 and NOTHING_DUE in said:
        return
    reasons = said.partition("that must run again:\n")[2] if planned.returncode == 0 else said
    reason = next(filter(None, map(str.strip, reasons.splitlines())), "jobs are due")
    raise UserError(
        f"results/{home.name}: not what these settings and this code make ({reason}); give the "
        f"--config values of the run, or run it again: {_command(given)}"
    )


def _dry_run(house: Path, given: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "snakemake", "--dry-run"]
    command += ["--snakefile", str(HOME / "Snakefile")]
    command += ["--profile", str(HOME / "profiles" / "local"), "--config", *given]
    return subprocess.run(command, cwd=house, capture_output=True, text=True, check=False)


def _command(given: Sequence[str]) -> str:
    """The command of the run; quotation marks in ARGS are those of the shell that make calls."""
    words = re.sub(r'(["`\\])', r"\\\1", shlex.join(given)).replace("$", r"\$\$")
    return f'make run ARGS="--config {words}"'


def main(arguments: list[str]) -> int:
    """Write the archive and print its path; exit code 2 after a user error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.archive",
        description="Write a finished run with its workflow as an RO-Crate, one zip file.",
    )
    parser.add_argument(
        "run", type=Path, help="folder of a finished run, such as results/smollm2-135m"
    )
    parser.add_argument("--out", type=Path, help="zip file to write; default RUN.crate.zip")
    parser.add_argument(
        "--weights",
        action="store_true",
        help="include the weights of the SAEs; without it, only their digests are in the archive",
    )
    parser.add_argument(
        "--config",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="the settings with which the run was made, as in Snakemake",
    )
    chosen = parser.parse_args(arguments)
    out = chosen.out or chosen.run.parent / f"{absolute(chosen.run).name}.crate.zip"
    try:
        unknown = archive(chosen.run, out, chosen.config, weights=chosen.weights)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for name in unknown:
        sys.stderr.write(
            f"note: the licence of the texts in {name} is not known here; check it before you "
            "publish the archive\n"
        )
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

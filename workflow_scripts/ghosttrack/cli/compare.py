"""`python -m ghosttrack.cli.compare RUN RUN [...]`: compare finished runs."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from ghosttrack.cli import output_folder
from ghosttrack.errors import UserError
from ghosttrack.planning.configuration import load_dataset

HOME = Path(__file__).resolve().parents[3]


def names_of(runs: Iterable[Path]) -> dict[str, Path]:
    """Runs by name: as many last parts of their paths as make the names unique."""
    paths = [path.resolve() for path in runs]
    for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    raise UserError(f"{paths[0]} is given twice: name different runs")


def controls_among(names: Iterable[str], runs: Iterable[Path]) -> list[str]:
    """Data sets that config/datasets, or the settings of a run, mark as positive controls."""
    controls = [name for run in runs for name in _recorded_controls(run)]
    for name in names:
        try:
            if load_dataset(name, HOME / "config").control:
                controls.append(name)
        except UserError:  # not described in this checkout
            continue
    return controls


def _recorded_controls(run: Path) -> list[str]:
    """The positive controls that the metrics of a run were made with; [] without a record."""
    from ghosttrack.runtime import records

    record = records.read_of_run(run, "evaluation/metrics.csv")
    return list(record.params.get("controls", [])) if record else []


def main(arguments: list[str]) -> int:
    """Write the tables and the page; exit code 2 after a user error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.compare",
        description="Compare finished runs; the first is the reference. Given texts that runs share "
        "are paired.",
    )
    parser.add_argument(
        "run", nargs="+", type=Path, help="folder of a finished run, such as results/smollm2-135m"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/comparison"),
        help="output folder; default %(default)s",
    )
    parser.add_argument(
        "--draws", type=int, default=1000, help="number of bootstrap draws; default %(default)s"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the bootstrap; default %(default)s"
    )
    chosen = parser.parse_args(arguments)
    try:
        if len(chosen.run) < 2:
            raise UserError("give at least two runs")
        if chosen.draws < 100:
            raise UserError(f"--draws: expected at least 100, found {chosen.draws}")
        if chosen.seed < 0:
            raise UserError(f"--seed: expected 0 or more, found {chosen.seed}")
        from ghosttrack.report import comparison
        from ghosttrack.settings import EvaluationSettings

        for path in chosen.run:
            if not path.is_dir():
                raise UserError(
                    f"{path} is not there: give the folder of a finished run, such as "
                    "results/smollm2-135m"
                )
        output_folder.require_free(chosen.out, chosen.run)
        runs = {name: comparison.read(path) for name, path in names_of(chosen.run).items()}
        datasets = dict.fromkeys(name for run in runs.values() for name in run.metrics["dataset"])
        settings = EvaluationSettings(bootstrap=chosen.draws)
        controls = controls_among(datasets, chosen.run)
        try:
            chosen.out.mkdir(parents=True, exist_ok=True)
            comparison.write(runs, chosen.out, controls, settings, chosen.seed)
        except OSError as error:
            raise output_folder.not_writable(chosen.out, error) from error
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{chosen.out / 'comparison.html'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

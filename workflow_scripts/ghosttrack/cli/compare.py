"""`python -m ghosttrack.cli.compare RUN RUN [...]`: finished runs side by side, whichever models, settings or seeds they have."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from ghosttrack.errors import UserError
from ghosttrack.planning.configuration import load_dataset

HOME = Path(__file__).resolve().parents[3]


def names_of(runs: Iterable[Path]) -> dict[str, Path]:
    """Runs by the last part of their path, or, where that is the same, by as many parts as tell them apart."""
    paths = [path.resolve() for path in runs]
    for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    raise UserError(f"{paths[0]} is given twice: compare different runs")


def controls_among(names: Iterable[str]) -> list[str]:
    """Data sets that config/datasets calls positive controls; one that is not described there is none."""
    found = []
    for name in names:
        try:
            if load_dataset(name, HOME / "config").control:
                found.append(name)
        except UserError:  # of another checkout
            continue
    return found


def main(arguments: list[str]) -> int:
    """Write tables and page; 2 after a wrong argument or a run that is not finished."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.compare",
        description="Set finished runs side by side: the first is the reference. Given texts that two runs share are paired.",
    )
    parser.add_argument(
        "run", nargs="+", type=Path, help="folder of a finished run, such as results/smollm2-135m"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/comparison"),
        help="folder to write; default %(default)s",
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=1000,
        help="bootstrap draws behind an interval; default %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws; default %(default)s")
    chosen = parser.parse_args(arguments)
    try:
        if len(chosen.run) < 2:
            raise UserError("give at least two runs")
        if chosen.draws < 100:
            raise UserError(
                f"--draws: {chosen.draws} are too few for an interval; expected at least 100"
            )
        from ghosttrack.report import comparison
        from ghosttrack.settings import EvaluationSettings

        for path in chosen.run:
            if not path.is_dir():
                raise UserError(
                    f"{path} is not there: give the folder of a finished run, such as results/smollm2-135m"
                )
        runs = {name: comparison.read(path) for name, path in names_of(chosen.run).items()}
        datasets = dict.fromkeys(name for run in runs.values() for name in run.metrics["dataset"])
        settings = EvaluationSettings(bootstrap=chosen.draws)
        chosen.out.mkdir(parents=True, exist_ok=True)
        comparison.write(runs, chosen.out, controls_among(datasets), settings, chosen.seed)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{chosen.out / 'comparison.html'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

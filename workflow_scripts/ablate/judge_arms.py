"""Compare every arm of a study with the run's tracks: tables, a figure, a page."""

from pathlib import Path

import pandas as pd

import ghosttrack
from ghosttrack.ablation import judging
from ghosttrack.ablation.arms import AblationArm
from ghosttrack.report import ablation_page
from ghosttrack.report import figures as drawing
from ghosttrack.runtime import files, job, tables
from ghosttrack.settings import EvaluationSettings


def main(
    *,
    scores: list[Path],
    fits: list[Path],
    table: Path,
    choices: list[Path],
    figures: list[Path],
    page: Path,
    model: str,
    study: str,
    arms: dict[str, AblationArm],
    controls: list[str],
    misled: list[str],
    evaluation: EvaluationSettings,
    seed: int,
) -> None:
    """Write the study's table, figure and page, and the choices of each training fold to `choices`.

    `scores` and `fits` have one entry per arm of `arms`; `controls` names the positive controls,
    `misled` the conflict sets.
    """
    tables_of_scores = {
        name: tables.read_parquet(path) for name, path in zip(arms, scores, strict=True)
    }
    chosen = pd.DataFrame(columns=list(judging.CHOICES))
    if choices:
        real = [name for name, arm in arms.items() if arm.variant == "default"]
        tables_of_fits = {
            name: tables.read_csv(path) for name, path in zip(arms, fits, strict=True)
        }
        tuned = judging.choose(
            judging.ArmTables(
                {n: tables_of_scores[n] for n in real}, {n: tables_of_fits[n] for n in real}
            )
        )
        tables_of_scores[judging.TUNED], chosen = tuned
    compared = judging.compare(arms, tables_of_scores, controls, misled, evaluation, seed)
    for path, content in [(table, compared), *((path, chosen) for path in choices)]:
        with files.atomic_write(path) as stream:
            tables.write_csv(content, stream)
    drawing.write(ablation_page.draw, [compared], figures)
    with files.atomic_write(page) as stream:
        stream.write(
            ablation_page.render(model, study, compared, chosen, figures, ghosttrack.__version__)
        )


if __name__ == "__main__":
    job.run(main, globals())

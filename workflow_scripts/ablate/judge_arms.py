"""Hold every arm of a study against the run's own tracks: tables, a figure, a page."""

from pathlib import Path

import pandas as pd

import ghosttrack
from ghosttrack.ablation import judging
from ghosttrack.ablation.arms import Arm
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
    arms: dict[str, Arm],
    controls: list[str],
    evaluation: EvaluationSettings,
    seed: int,
) -> None:
    """Write the study's table, with `choices` what was chosen in each training fold, and show both.

    `scores` and `fits` go with `arms`; `controls` names the positive controls.
    """
    found = {name: tables.read_parquet(path) for name, path in zip(arms, scores, strict=True)}
    chosen = pd.DataFrame(columns=list(judging.CHOICES))
    if choices:
        free = [name for name, arm in arms.items() if arm.variant == "default"]
        inner = {name: tables.read_csv(path) for name, path in zip(arms, fits, strict=True)}
        picked = judging.choose(
            judging.Results({n: found[n] for n in free}, {n: inner[n] for n in free})
        )
        found[judging.TUNED], chosen = picked
    compared = judging.compare(arms, found, controls, evaluation, seed)
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

"""Set the models of one run side by side, and pair them where they have texts in common."""

from pathlib import Path

from ghosttrack.report import comparison
from ghosttrack.runtime import job
from ghosttrack.settings import EvaluationSettings


def main(
    *,
    metrics: list[Path],
    page: Path,
    models: list[str],
    controls: list[str] | None = None,
    evaluation: EvaluationSettings | None = None,
    seed: int = 0,
) -> None:
    """Write the tables and the page into the folder of `page`.

    `metrics` follow `models`; ledgers, scores and texts are read from the same runs.
    """
    runs = {
        name: comparison.read(path.parents[1]) for name, path in zip(models, metrics, strict=True)
    }
    comparison.write(runs, page.parent, controls or [], evaluation or EvaluationSettings(), seed)


if __name__ == "__main__":
    job.run(main, globals())

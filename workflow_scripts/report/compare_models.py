"""Compare the models of one run; models are paired on shared texts."""

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
    """Write the tables and the page to the folder of `page`.

    Args:
        metrics: RUN/evaluation/metrics.csv in the order of `models`; the other tables are read from
            the same runs.
        page: comparison.html.
        models: names of the models.
        controls: data sets that are positive controls.
        evaluation: settings of the bootstrap.
        seed: of the bootstrap.
    """
    runs = {
        name: comparison.read(path.parents[1]) for name, path in zip(models, metrics, strict=True)
    }
    comparison.write(runs, page.parent, controls or [], evaluation or EvaluationSettings(), seed)


if __name__ == "__main__":
    job.run(main, globals())

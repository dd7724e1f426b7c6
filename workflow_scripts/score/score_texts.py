"""Score the texts of one's own file with the saved detector: jsonl, csv, and a page."""

from pathlib import Path

import torch

from ghosttrack.api import Detector
from ghosttrack.cli.score import read_context, read_texts, write
from ghosttrack.runtime import job
from ghosttrack.settings import ScoreSettings


def main(
    *, texts: Path, detector: Path, scores: list[Path], score: ScoreSettings, threads: int = 1
) -> None:
    """Write the same scores in every form of `scores`; the run's folder is that of `detector`."""
    torch.set_num_threads(threads)
    run = detector.parent.parent
    loaded = Detector.load(run)
    given = read_texts(texts, read_context(score.context))
    found = loaded.score(given, confidence=score.confidence, reasons=score.reasons)
    for path in scores:
        write(found, path, {**loaded.about, "run": run.name, "confidence": score.confidence})


if __name__ == "__main__":
    job.run(main, globals())

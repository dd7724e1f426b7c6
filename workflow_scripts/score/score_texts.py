"""Score a file of user texts with the saved detector; write jsonl, csv and a page."""

from pathlib import Path

import torch

from ghosttrack.api import Detector
from ghosttrack.cli.given_texts import read_context, read_texts
from ghosttrack.cli.score import write
from ghosttrack.runtime import job
from ghosttrack.settings import ScoreSettings


def main(
    *,
    texts: Path,
    detector: Path,
    scores: list[Path],
    score: ScoreSettings,
    threads: int = 1,
    gpu: int = 1,
) -> None:
    """Write the scores to every file of `scores`.

    Args:
        texts: file of user texts.
        detector: RUN/detection/detector.safetensors.
        scores: files to write; the suffix names the format.
        score: settings.
        threads: CPU threads.
        gpu: GPUs over which the model is spread.
    """
    torch.set_num_threads(threads)
    run = detector.parent.parent
    loaded = Detector.load(run, gpus=gpu)
    given = read_texts(texts, read_context(score.context))
    results = loaded.score(given, confidence=score.confidence, reasons=score.reasons)
    for path in scores:
        write(results, path, {**loaded.about, "run": run.name, "confidence": score.confidence})


if __name__ == "__main__":
    job.run(main, globals())

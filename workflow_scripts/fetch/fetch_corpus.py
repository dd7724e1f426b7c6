"""Fetch, tokenise and pack the SAE training text, and hold out documents for SAE quality."""

from pathlib import Path

from ghosttrack.inputs import documents
from ghosttrack.inputs.corpus import SplitPaths
from ghosttrack.runtime import job
from ghosttrack.settings import CorpusSettings


def main(
    *,
    tokenizer: Path,
    model_config: Path,
    train: Path,
    train_manifest: Path,
    heldout: Path,
    heldout_manifest: Path,
    corpus: CorpusSettings,
    seed: int,
) -> None:
    """Write the two token stores and their manifests."""
    documents.fetch(
        corpus,
        seed,
        tokenizer=tokenizer,
        model_config=model_config,
        train=SplitPaths(train, train_manifest),
        heldout=SplitPaths(heldout, heldout_manifest),
    )


if __name__ == "__main__":
    job.run(main, globals())

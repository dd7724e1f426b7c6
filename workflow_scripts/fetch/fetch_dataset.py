"""Fetch one data set of labelled texts and write it in the format that later steps read."""

from pathlib import Path

from ghosttrack.inputs import datasets
from ghosttrack.runtime import job
from ghosttrack.settings import DatasetSettings


def main(*, examples: Path, dataset_settings: DatasetSettings, dataset: str, seed: int) -> None:
    """Write examples.parquet."""
    with datasets.named(dataset):
        frame = datasets.load_examples(dataset_settings, seed)
    datasets.write_table(frame, examples)


if __name__ == "__main__":
    job.run(main, globals())

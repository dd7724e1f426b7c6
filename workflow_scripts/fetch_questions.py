"""Fetch the questions of one data set with the prompts that the model completes."""

from pathlib import Path

from ghosttrack import job
from ghosttrack.inputs import datasets
from ghosttrack.settings import DatasetSettings, GenerationSettings


def main(
    *, questions: Path, dataset_settings: DatasetSettings, dataset: str, generation: GenerationSettings, seed: int
) -> None:
    """Write questions.parquet."""
    with datasets.named(dataset):
        frame = datasets.load_questions(dataset_settings, seed, generation.questions)
    datasets.write_table(frame, questions)


if __name__ == "__main__":
    job.run(main, globals())

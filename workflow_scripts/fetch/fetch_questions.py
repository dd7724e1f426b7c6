"""Fetch the questions of one data set, with the prompts that the model completes."""

from pathlib import Path

from ghosttrack.inputs import chat, datasets, models
from ghosttrack.runtime import job
from ghosttrack.settings import DatasetSettings, GenerationSettings


def main(
    *,
    tokenizer: list[Path],
    questions: Path,
    dataset_settings: DatasetSettings,
    dataset: str,
    model: str,
    generation: GenerationSettings,
    seed: int,
) -> None:
    """Write questions.parquet.

    `tokenizer` (files in the model's directory) is used only with generation.prompt: chat.
    """
    in_chat = generation.prompt == "chat"
    loaded = models.load_tokenizer(tokenizer[0].parent) if in_chat else None
    if in_chat:
        chat.require_template(loaded, model)
    with datasets.named(dataset):
        frame = datasets.load_questions(dataset_settings, seed, generation.questions, chat=in_chat)
        if in_chat:
            turns = frame.pop("turns").tolist()
            frame = chat.ask(frame, turns, loaded)
    datasets.write_table(frame, questions)


if __name__ == "__main__":
    job.run(main, globals())

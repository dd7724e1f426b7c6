"""One data set: config/datasets/NAME.yaml."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class DatasetSettings(Section):
    """One file in config/datasets."""

    source: Literal["facts", "truthfulqa", "halueval", "triviaqa", "nq_open", "file"] = Field(
        ...,
        description="Embedded facts, a known data set (from the hub, or from `path` in the hub's form), or any csv, jsonl or parquet file.",
    )
    mode: Literal["given", "generated"] = Field(
        "given",
        description="`given`: labelled texts; `generated`: the model answers the questions itself and is marked against the gold answers.",
    )
    control: bool = Field(
        False,
        description="A positive control: its text alone is known to give the label away, so it supports no claim.",
    )
    table: str | None = Field(None, description="Fact table, for `facts` in given mode.")
    path: names.LocalPath | None = Field(
        None,
        description="Local file that replaces the hub: csv (columns between commas, semicolons, tabs or vertical bars), tsv, jsonl, parquet, or json as pandas and `datasets` write it.",
    )
    text_column: str = Field("text", description="`file`: the whole text.")
    label_column: str = Field(
        "label",
        description="`file`: 1 or true = hallucinated, 0 or false = true; `true_label` turns it round. The log shows how each label is read, with two examples.",
    )
    true_label: Literal[0, 1] = Field(
        0,
        description="`file`: the label of true texts; 1 for the many public files that mark a true statement with 1.",
    )
    group_column: str | None = Field(
        None,
        description="`file`: rows that must stay in one fold (same question, same subject), text or numbers; null: the question, or without one every distinct text is its own group. The same holds for a row whose cell is missing (null, NaN, empty, or the text NaN, NaT, <NA>, null or None); a warning counts them.",
    )
    question_column: str | None = Field(
        None, description="`file`: question or prompt that the text starts with or answers."
    )
    answer_column: str | None = Field(
        None,
        description="`file`: part of the text that is judged, text or a number; null: all of it after the question. A text may stand in several rows with other parts, each with its label; these rows stay in one fold.",
    )
    gold_column: str | None = Field(
        None,
        description="`file`, generated mode: accepted answers. Text (several separated by `;`), a number (7.0 is `7`), a boolean (`true`, `false`), a list or a list as text (JSON or Python's), SQuAD's `{text, answer_start}`, TriviaQA's `{value, aliases}`, Natural Questions' short answers, or `{choices, labels}`, whose choices of label 1 count. `answer.value` names the key `value` of objects in column `answer`; every column key takes such names. Anything else is refused with its row.",
    )
    max_examples: int | None = Field(
        None, ge=8, description="Take at most so many examples, whole groups, chosen by the seed."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source == "facts" and self.mode == "given" and not self.table:
            raise ValueError("table: which fact table? expected with source: facts")
        if self.source == "file" and not self.path:
            raise ValueError("path: which file? expected with source: file")
        if self.source in ("triviaqa", "nq_open") and self.mode != "generated":
            raise ValueError(
                f"mode: {self.source} holds questions that the model answers, expected mode: generated"
            )
        if (
            self.source == "file"
            and self.mode == "generated"
            and not (self.question_column and self.gold_column)
        ):
            raise ValueError(
                "question_column, gold_column: which columns? expected with mode: generated"
            )
        return self

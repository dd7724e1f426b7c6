"""Detectors from outside this project, judged by the same folds, controls and claims."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.section import Section

# What a class may read beside the texts: see detection/protocol.py.
Reads = Literal["outputs", "activations", "token_activations", "codes", "tracks", "tokens"]


class ScoreTable(Section):
    """A table of scores that were made elsewhere."""

    name: Annotated[str, AfterValidator(names.score)] = Field(
        ..., description="Name of the scores in tables and reports: letters, digits and `_`."
    )
    path: names.LocalPath = Field(
        ...,
        description="File with one row per text: .csv, .tsv, .jsonl, .json or .parquet. Columns: "
        "`id` as in examples.parquet, and `score`. Optional columns: `dataset`, which is needed "
        "only if data sets share ids; `name`, if the table holds several scores; `token`, the "
        "number of the token, if there is a row per token.",
    )
    lower_is_hallucinated: bool = Field(
        False,
        description="Whether a low score means hallucinated, as for a log-probability. Nothing is "
        "reversed by itself: the report says if a score is below chance everywhere.",
    )
    tokens: Literal["mean", "max"] = Field(
        "mean",
        description="How the scores of the tokens of a text become the score of the text, for a "
        "table with the column `token`. `max` takes the highest score, after a reversal by "
        "`lower_is_hallucinated`.",
    )


class DetectorClass(Section):
    """A Python class that is fitted in the outer folds."""

    name: Annotated[str, AfterValidator(names.score)] = Field(
        ..., description="Name of the score in tables and reports: letters, digits and `_`."
    )
    source: Annotated[str, AfterValidator(names.class_source)] = Field(
        ...,
        description="The class: `path/to/file.py:CLASS`, or `package.module:CLASS` for an "
        "installed package. The class has the methods `fit(examples, labels)` and "
        "`score(examples)`. A change of the file, or of a Python file that it imports from its "
        "folder or package, reruns the class.",
    )
    reads: list[Reads] = Field(
        [],
        description="What the class reads beside the texts. `outputs`: features of the model's "
        "output, such as the log-probability of the answer; `activations`: mean activation of the "
        "answer in each layer; `token_activations`: activations of each answer token; `codes`: "
        "maximum of each SAE feature over the answer; `tracks`: the track metrics; `tokens`: the "
        "tokens of the answer with their log-probabilities.",
    )


class ExternalSettings(Section):
    """Detectors from outside this project, judged by the same folds, controls and claims."""

    tables: list[ScoreTable] = Field(
        [],
        description="Scores that were made elsewhere, a list of tables. For a finished run, `make "
        "judge` needs no setting.",
    )
    classes: list[DetectorClass] = Field(
        [], description="Python classes that are fitted in the outer folds, a list."
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for key, chosen in (("tables", self.tables), ("classes", self.classes)):
            if repeated := _repeated([entry.name for entry in chosen]):
                raise ValueError(
                    f"external.{key}: two entries have the name {repeated}; rename one"
                )
        return self


def _repeated(values: Sequence[str]) -> str:
    """The first value that differs from an earlier one at most in capital letters, or ""."""
    seen: set[str] = set()
    for value in values:
        if value.casefold() in seen:
            return value
        seen.add(value.casefold())
    return ""

"""One data set: config/datasets/NAME.yaml."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ghosttrack.settings import names
from ghosttrack.settings.section import Section


class ConflictSettings(Section):
    """Remarks before the statements of a minimal-pair set, or before questions."""

    wordings: list[Literal["hearsay", "belief", "passage", "demonstrations"]] = Field(
        ["hearsay", "belief", "passage", "demonstrations"],
        min_length=1,
        description="Wordings of the remarks. `hearsay`: `Some say that ...`; `belief`: a user is "
        "sure; `passage`: three sentences of a note, with the answer in the second; "
        "`demonstrations`: further lines like the few-shot demonstrations, all true or all false. "
        "The blocks take turns: each has one wording.",
    )
    few_shot: bool = Field(
        False,
        description="Mode `given`: put the few-shot demonstrations of the relation, all true, "
        "before the remark. They tell the model to state facts, and make its output a better "
        "judge. Statements in the closed book and questions in mode `generated` always have "
        "demonstrations.",
    )


class DatasetSettings(Section):
    """One file in config/datasets."""

    source: Literal[
        "facts",
        "truthfulqa",
        "halueval",
        "triviaqa",
        "nq_open",
        "popqa",
        "simpleqa",
        "ragtruth",
        "factscore",
        "counterfact",
        "file",
    ] = Field(
        ...,
        description="`facts`: an embedded fact table; `truthfulqa`, `halueval`, `triviaqa`, "
        "`nq_open`, `popqa`, `simpleqa`, `ragtruth`: this known data set, from the hub or from a "
        "file in the format of the hub or of the authors (`path`); `factscore`, `counterfact`: the "
        "same, only from a file; `file`: your own file (`path`).",
    )
    task: Literal["qa", "summary", "data_to_text"] = Field(
        "qa", description="`ragtruth`: the answers to this task."
    )
    mode: Literal["given", "generated"] = Field(
        "given",
        description="`given`: texts with labels; `generated`: the model answers the questions, "
        "and its answers are compared with the gold answers.",
    )
    control: bool = Field(
        False,
        description="Positive control: the text alone is known to reveal the label, so the data "
        "set supports no claim.",
    )
    table: str | None = Field(None, description="Fact table, for `facts` in mode `given`.")
    path: names.LocalPath | None = Field(
        None,
        description="Local file to read instead of the hub. Formats: .csv (columns separated by "
        "commas, semicolons, tabs or vertical bars), .tsv, .jsonl, .parquet, and .json as pandas "
        "and `datasets` write it.",
    )
    text_column: str = Field("text", description="`file`: column with the whole text.")
    label_column: str = Field(
        "label",
        description="`file`: column with the label. 1 or true = hallucinated, 0 or false = true "
        "statement; `true_label: 1` reverses this. The log shows how each label is read, with two "
        "examples.",
    )
    true_label: Literal[0, 1] = Field(
        0,
        description="`file`: the label of true texts. Set 1 for the many public files in which 1 "
        "marks a true statement.",
    )
    group_column: str | None = Field(
        None,
        description="`file`: column of text or numbers. Rows with the same value (the same "
        "question, the same subject) stay in one fold. null: rows with the same question form a "
        "group, or rows with the same context or text where there is no question. A row whose value is "
        "missing (null, NaN, empty, or the text `NaN`, `NaT`, `<NA>`, `null` or `None`) is "
        "grouped as with null, and a warning gives the number of these rows.",
    )
    question_column: str | None = Field(
        None,
        description="`file`: column with a question or prompt. Either every text begins with its "
        "question, or every text is only the answer.",
    )
    answer_column: str | None = Field(
        None,
        description="`file`: column with the part of the text that is judged, as text or a "
        "number. null: everything after the question. A text may occur in several rows, with "
        "different parts and labels; these rows stay in one fold.",
    )
    context_column: str | None = Field(
        None,
        description="`file`, mode `given`: column with what stands before the question or text: "
        "retrieved passages, a document, a prompt. The model reads it, and no detector or control "
        "judges it as text. Texts with the same context stay in one fold. A cell may be empty.",
    )
    long_contexts: Literal["refuse", "window"] = Field(
        "refuse",
        description="What to do if a context and its text exceed the model's longest input. "
        "`refuse`: stop, with the id of the text; `window`: drop tokens from the start of the "
        "context, in steps of 256, until the rest fits. The text itself is never cut. The log "
        "counts these texts, and outputs.parquet has the number of dropped tokens.",
    )
    spans_column: str | None = Field(
        None,
        description="`file`, mode `given`: column with the hallucinated spans of the answer, in "
        "characters from its start: a list of objects with `start` and `end` (RAGTruth), also with "
        "`prob` (soft labels of Mu-SHROOM), a list of pairs, or the answer with FAVA's tags. `[]`: "
        "no span. An answer with a span of a probability above .5 is hallucinated; `label_column` "
        "is not read. Such a data set gets detectors of single tokens, too.",
    )
    generator_column: str | None = Field(
        None,
        description="`file`, mode `given`: column with the name of the model or person that wrote "
        "the answer. The name alone is a control: a detector may only recognise who wrote a text.",
    )
    gold_column: str | None = Field(
        None,
        description="`file`, mode `generated`: column with the accepted answers. A cell may hold "
        "text (several answers separated by `;`), a number (7.0 is `7`), a boolean (`true`, "
        "`false`), or a list, also written as text (JSON or Python). It may also hold SQuAD's "
        "`{text, answer_start}`, TriviaQA's `{value, aliases}`, the short answers of Natural "
        "Questions, or `{choices, labels}`, of which the choices with label 1 are accepted. Any "
        "other value is an error that names its row. `answer.value` is the key `value` of the "
        "objects in the column `answer`. A dot means the same in all settings that name a column.",
    )
    max_examples: int | None = Field(
        None,
        ge=8,
        description="Maximum number of examples. Whole groups are chosen at random, by `seed`.",
    )

    conflict: ConflictSettings | None = Field(
        None,
        description="Make a conflict set: every text follows a remark that asserts the true "
        "answer, and one that asserts the false answer of its block, so that neither the remark "
        "nor its agreement with the text says anything about the label. Mode `given`: needs "
        "prompts with one true and one false answer, and leaves out the others; `max_examples` "
        "counts the texts with their remarks. Mode `generated`: every question is asked after "
        "both remarks. null: no remarks. `{}`: all wordings.",
    )

    @property
    def has_contexts(self) -> bool:
        """Whether texts follow a context."""
        return self.source == "ragtruth" or self.context_column is not None

    @property
    def has_spans(self) -> bool:
        """Whether answers have hallucinated spans."""
        return self.source == "ragtruth" or self.spans_column is not None

    @model_validator(mode="after")
    def _check_required(self) -> Self:
        if self.source == "facts" and self.mode == "given" and not self.table:
            raise ValueError("table: missing; source: facts needs the name of a fact table")
        if self.source in ("file", "factscore", "counterfact") and not self.path:
            raise ValueError(f"path: missing; source: {self.source} needs the path of a file")
        if self.source in ("ragtruth", "factscore", "counterfact") and self.mode != "given":
            raise ValueError(f"mode: {self.source} has labelled texts; set mode: given")
        if self.source in ("ragtruth", "factscore") and self.conflict:
            raise ValueError(f"conflict: {self.source} has no minimal pairs; remove conflict")
        if self.source in ("triviaqa", "nq_open", "popqa", "simpleqa") and self.mode != "generated":
            raise ValueError(
                f"mode: {self.source} has questions without answers to judge; set mode: generated"
            )
        if (
            self.source == "file"
            and self.mode == "generated"
            and not (self.question_column and self.gold_column)
        ):
            raise ValueError(
                "question_column, gold_column: missing; mode: generated needs both column names"
            )
        for key in ("spans_column", "generator_column"):
            if getattr(self, key) and (
                self.source != "file" or self.mode != "given" or self.conflict
            ):
                raise ValueError(
                    f"{key}: only for source: file in mode: given, without conflict; remove it"
                )
        if self.context_column and (self.source != "file" or self.mode != "given"):
            raise ValueError(
                "context_column: only for source: file in mode: given; in mode: generated, put "
                "the context into the column of the question"
            )
        if self.context_column and self.conflict:
            raise ValueError(
                "context_column, conflict: a text cannot have both a context and a remark; "
                "remove one of them"
            )
        return self

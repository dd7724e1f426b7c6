"""The rows of examples.parquet and questions.parquet, and when two texts count as the same."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ghosttrack.facts.spans import Span

if TYPE_CHECKING:
    import pandas as pd


class Example(NamedTuple):
    """One labelled text: a row of examples.parquet.

    The judged span is text[answer_start:answer_end].
    """

    id: str
    group: str  # texts of one group stay in one cross-validation fold
    relation: str
    subject: str  # "" where the source names none
    question: str  # "" where the source has none
    prompt: str  # the text before the answer
    answer: str  # the judged span
    text: str
    answer_start: int  # in characters
    answer_end: int
    label: int  # 1: hallucinated
    mode: str  # "given", or "generated": the answer comes from the model
    gold: list[str]  # accepted answers
    other: str = ""  # the other candidate answer to the same prompt, "" where there is none
    remark: str = ""  # a text before the statement that asserts an answer, "" where there is none
    remark_answer: str = ""  # the answer that the remark asserts
    wording: str = ""  # name of the remark's wording
    context: str = ""  # what the model reads before `text`: a document; "" where there is none
    long_contexts: str = ""  # "window": the context may be shortened, see `example_tokens`
    generator: str = ""  # who wrote the answer, "" where it is not known
    spans: list[Span] | None = None  # hallucinated spans of the answer; None: not known


# Columns that examples.parquet has only if an example has a value in them.
OPTIONAL = ("context", "long_contexts", "generator", "spans")
COLUMNS = tuple(name for name in Example._fields if name not in OPTIONAL)


class Question(NamedTuple):
    """One question for the model to answer: a row of questions.parquet."""

    id: str
    group: str
    relation: str
    subject: str
    question: str
    prompt: str  # few-shot demonstrations, then the text that the model completes
    gold: list[str]  # accepted answers, the usual one first
    arguable: Sequence[str] = ()  # answers that are neither accepted nor wrong
    other: str = ""  # a false answer, which a remark may assert; "" without remarks
    remark: str = ""  # as in Example; a part of the prompt
    remark_answer: str = ""
    wording: str = ""


def example_table(examples: Iterable[Example]) -> "pd.DataFrame":
    """Examples as a data frame with one column per field; see OPTIONAL."""
    import pandas as pd

    frame = pd.DataFrame(list(examples), columns=list(Example._fields))
    unused = [name for name in OPTIONAL if all(value in ("", None) for value in frame[name])]
    frame = frame.drop(columns=unused)
    return frame.astype({"answer_start": "int64", "answer_end": "int64", "label": "int64"})


def question_table(questions: Iterable[Question]) -> "pd.DataFrame":
    """Questions as a data frame with one column per field."""
    import pandas as pd

    return pd.DataFrame(list(questions), columns=list(Question._fields))


def as_read(examples: "pd.DataFrame") -> list[str]:
    """Context and text of each example: two examples with the same result are repeats."""
    contexts = examples["context"] if "context" in examples else [""] * len(examples)
    return [
        f"{context}\n{text}" if context else str(text)
        for context, text in zip(contexts, examples["text"], strict=True)
    ]


def same_text(text: str) -> str:
    """Key of a text without case, white space and final full stops; equal keys: the same text.

    Letters with accents have one form, however they are encoded (NFC).

    Data sets repeat an answer with and without its full stop ("No", "No."). Such texts are one
    text: when repeats are dropped, when groups are formed, and when folds are checked for leaks.
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".")

"""Labelled texts and questions from every source, in the columns of examples.parquet and questions.parquet.

Known data sets come from the hub, or from `path` in the same form. Nothing is decided here but what
the data say: a judged span that stands with both labels is dropped, and counted in the log and in `attrs`.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.facts import statements
from ghosttrack.inputs import hub, user_texts
from ghosttrack.inputs.gold import answers_of
from ghosttrack.inputs.rows import Row, columns_of, read_rows, require_columns, text_of
from ghosttrack.inputs.user_texts import normalised
from ghosttrack.runtime.files import atomic_write
from ghosttrack.settings import DatasetSettings

log = logging.getLogger("ghosttrack")

# Solved examples before each question of a generated data set: enough to show the form of an answer.
SHOTS = 5


class Item(NamedTuple):
    """A question of a known data set with its right and wrong answers, the usual right one first."""

    relation: str
    question: str
    correct: list[str]
    incorrect: list[str]


class Known(NamedTuple):
    """A known data set: its place on the hub and the reader of its rows."""

    hub_id: str
    config: str | None
    split: str
    read: Callable[[Row, int, str], Item]


@contextmanager
def named(dataset: str) -> Iterator[None]:
    """Put the data set's file in front of what a UserError says."""
    try:
        yield
    except UserError as error:
        raise UserError(f"config/datasets/{dataset}.yaml: {error}") from error


def load_examples(settings: DatasetSettings, seed: int, limit: int | None = None) -> pd.DataFrame:
    """Labelled texts of a `given` data set; label 1 = hallucinated.

    Args:
        settings: the data set.
        seed: chooses groups when there are more than `limit` or `settings.max_examples` allow.
        limit: at most so many examples, whole groups kept.
    Returns:
        Columns `statements.COLUMNS`; `attrs` says where the rows came from and what was dropped.
    Raises:
        UserError: no network, missing column, bad label, empty text, only one class.
    """
    limits = [each for each in (limit, settings.max_examples) if each is not None]
    most = min(limits) if limits else None
    if settings.source == "facts":
        frame = statements.build_statements(str(settings.table), seed, most)
        frame.attrs = {"source": f"facts: {settings.table}", "revision": None}
        return frame
    if settings.source == "file":
        frame, revision = _from_file(settings), None
    else:
        items, revision = _items(settings)
        frame = pd.DataFrame(_given_rows(settings.source, items), columns=list(statements.COLUMNS))
    frame, dropped = _without_repeats(frame)
    if frame["label"].nunique() < 2:
        raise UserError(
            f"{settings.path or settings.source}: {_labels_left(frame)}; expected true and hallucinated texts. Left out were "
            f"{dropped['dropped_both_labels']} rows whose text has both labels, and {dropped['dropped_repeats']} repeats"
        )
    frame = _whole_groups(frame, most, seed)
    frame.attrs = {"source": _name(settings), "revision": revision, **dropped}
    log.info(
        "%d texts in %d groups, %d hallucinated; %s",
        len(frame),
        frame["group"].nunique(),
        frame["label"].sum(),
        dropped,
    )
    return frame.astype({"answer_start": "int64", "answer_end": "int64", "label": "int64"})


def load_questions(
    settings: DatasetSettings, seed: int, count: int, *, chat: bool = False
) -> pd.DataFrame:
    """Questions of a `generated` data set with few-shot prompts, evenly over its relations.

    The solved examples in the prompts are other questions than those returned.

    Args:
        settings: the data set.
        seed: chooses the solved examples and the questions.
        count: questions wanted; `settings.max_examples` may ask for fewer.
        chat: whether a chat will be made of them.
    Returns:
        Columns `statements.QUESTION_COLUMNS`; with `chat` also `turns`, the messages of user and assistant in turn: the
        solved questions with their answers, then the question.
    Raises:
        UserError: no network, missing column, no accepted answer, too few questions.
    """
    count = min(count, settings.max_examples or count)
    if settings.source == "facts":
        frame = statements.build_questions(seed, count)
        frame.attrs = {"source": "facts", "revision": None}
        return (
            _with_turns(frame, [statements.solved_questions(each) for each in frame["relation"]])
            if chat
            else frame
        )
    revision = None
    if settings.source == "file":
        asked = [
            ("file", item.group, item.question, item.gold)
            for item in user_texts.read_questions(settings)
        ]
    else:
        items, revision = _items(settings)
        asked = [
            (item.relation, normalised(item.question), item.question, item.correct)
            for item in items
        ]
    distinct: dict[str, tuple[str, str, str, list[str]]] = {}
    for entry in asked:
        distinct.setdefault(normalised(entry[2]), entry)
    pool = list(distinct.values())
    if len(pool) <= SHOTS:
        raise UserError(
            f"path: {_name(settings)} holds {len(pool)} different questions; {SHOTS} go into the prompt, more are needed"
        )
    order = np.random.default_rng(seed).permutation(len(pool))
    solved = {pool[at][1] for at in order[:SHOTS]}
    shots = "".join(f"{_ask(pool[at][2])} {pool[at][3][0]}\n\n" for at in order[:SHOTS])
    taken: dict[str, list[int]] = {}
    for at in order[SHOTS:]:
        if pool[at][1] not in solved:
            taken.setdefault(pool[at][0], []).append(int(at))
    chosen = sorted(_round_robin(list(taken.values()), count))
    frame = pd.DataFrame(
        [
            (
                f"{settings.source}-{at:05d}",
                group,
                relation,
                "",
                question,
                shots + _ask(question),
                gold,
            )
            for at, (relation, group, question, gold) in ((at, pool[at]) for at in chosen)
        ],
        columns=list(statements.QUESTION_COLUMNS),
    )
    frame.attrs = {"source": _name(settings), "revision": revision}
    earlier = [text for at in order[:SHOTS] for text in (_with_mark(pool[at][2]), pool[at][3][0])]
    return _with_turns(frame, [earlier] * len(frame)) if chat else frame


def _with_turns(frame: pd.DataFrame, earlier: Sequence[list[str]]) -> pd.DataFrame:
    """The questions with a column `turns`: the earlier messages of each, then the question itself."""
    asked = frame["question"].map(_with_mark)
    return frame.assign(
        turns=[[*own, question] for own, question in zip(earlier, asked, strict=True)]
    )


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write examples or questions as parquet, atomically; `attrs` go into the file's metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    fields = {
        "answer_start": pa.int64(),
        "answer_end": pa.int64(),
        "label": pa.int64(),
        "gold": pa.list_(pa.string()),
        "prompt_ids": pa.list_(pa.int64()),
    }
    schema = pa.schema([(name, fields.get(name, pa.string())) for name in frame.columns])
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    # The key under which pandas itself keeps and restores `attrs`.
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), "PANDAS_ATTRS": json.dumps(frame.attrs)}
    )
    with atomic_write(path, "wb") as stream:
        parquet.write_table(table, stream)


def _ask(question: str) -> str:
    """The question as a prompt that an answer completes."""
    return f"Q: {_with_mark(question)}\nA:"


def _with_mark(question: str) -> str:
    """The question with a mark at its end; NQ-open's questions come without one."""
    return f"{question}{'' if question[-1] in '?.!:' else '?'}"


def _round_robin(lists: list[list[int]], count: int) -> list[int]:
    """Up to `count` entries, as evenly from the lists as they allow, each list front to back."""
    ranked = [
        (place, which, entry)
        for which, entries in enumerate(lists)
        for place, entry in enumerate(entries)
    ]
    return [entry for _, _, entry in sorted(ranked)[:count]]


def _items(settings: DatasetSettings) -> tuple[list[Item], str | None]:
    known = KNOWN[settings.source]
    revision = None
    if settings.path:
        rows: Iterable[Row] = read_rows(Path(settings.path))
    else:
        rows, revision = hub.rows(
            known.hub_id,
            known.config,
            known.split,
            None,
            streaming=False,
            key="source",
            instead="without the hub set `path` in the data set's file to a local copy of the same form",
        )
    name = settings.path or known.hub_id
    return [known.read(row, number, name) for number, row in enumerate(rows, start=1)], revision


def _name(settings: DatasetSettings) -> str:
    """The source without the folders of this machine."""
    return Path(settings.path).name if settings.path else KNOWN[settings.source].hub_id


def _truthfulqa(row: Row, number: int, name: str) -> Item:
    cells = {str(key).strip().lower().replace(" ", "_"): value for key, value in row.items()}
    needed = ("category", "question", "best_answer", "correct_answers", "incorrect_answers")
    require_columns(cells, [("", column) for column in needed], name)
    best = text_of(cells, "best_answer", number, name)
    return Item(
        str(cells["category"]),
        text_of(cells, "question", number, name),
        _distinct([best, *answers_of(cells, "correct_answers", number, name)]),
        _distinct(
            [
                *_single(cells.get("best_incorrect_answer")),
                *answers_of(cells, "incorrect_answers", number, name),
            ]
        ),
    )


def _halueval(row: Row, number: int, name: str) -> Item:
    require_columns(
        row, [("", column) for column in ("question", "right_answer", "hallucinated_answer")], name
    )
    question, right, wrong = (
        text_of(row, column, number, name)
        for column in ("question", "right_answer", "hallucinated_answer")
    )
    return Item("halueval", question, [right], [wrong])


def _triviaqa(row: Row, number: int, name: str) -> Item:
    cells = {str(key).lower(): value for key, value in row.items()}
    require_columns(cells, [("", "question"), ("", "answer")], name)
    answers = _required(answers_of(cells, "answer", number, name), number, name)
    return Item("triviaqa", text_of(cells, "question", number, name), answers, [])


def _nq_open(row: Row, number: int, name: str) -> Item:
    require_columns(row, [("", "question"), ("", "answer")], name)
    return Item(
        "nq_open",
        text_of(row, "question", number, name),
        _required(answers_of(row, "answer", number, name), number, name),
        [],
    )


# The hub's form of each; a local file in the authors' own form is read too.
KNOWN = {
    "truthfulqa": Known("truthfulqa/truthful_qa", "generation", "validation", _truthfulqa),
    "halueval": Known("pminervini/HaluEval", "qa", "data", _halueval),
    "triviaqa": Known("mandarjoshi/trivia_qa", "rc.nocontext", "validation", _triviaqa),
    "nq_open": Known("google-research-datasets/nq_open", "nq_open", "validation", _nq_open),
}


def _required(answers: list[str], number: int, name: str) -> list[str]:
    if not answers:
        raise UserError(
            f"row {number} of {name}: no accepted answer; use a split whose answers are public (validation, not test)"
        )
    return _distinct(answers)


def _single(value: Any) -> list[str]:
    return [value.strip()] if isinstance(value, str) and value.strip() else []


def _distinct(answers: Iterable[str]) -> list[str]:
    """Answers without repeats, in order; the first writing of each stays."""
    found: dict[str, str] = {}
    for answer in answers:
        found.setdefault(normalised(answer), answer)
    return list(found.values())


def _given_rows(source: str, items: list[Item]) -> Iterator[tuple[Any, ...]]:
    for number, item in enumerate(items, start=1):
        prompt = f"Q: {item.question}\nA:"
        start = len(prompt) + 1
        for label, letter, answers in ((0, "c", item.correct), (1, "i", item.incorrect)):
            for count, answer in enumerate(answers):
                yield (
                    f"{source}-{number:05d}-{letter}{count}",
                    normalised(item.question),
                    item.relation,
                    "",
                    item.question,
                    prompt,
                    answer,
                    f"{prompt} {answer}",
                    start,
                    start + len(answer),
                    label,
                    "given",
                    item.correct,
                )


def _from_file(settings: DatasetSettings) -> pd.DataFrame:
    if settings.mode == "generated":
        raise UserError(f"mode: {settings.path} is read as labelled texts with mode: given")
    return pd.DataFrame(
        [
            (
                f"row-{number:06d}",
                item.group,
                "file",
                "",
                item.question,
                item.prompt,
                item.text[item.answer_start : item.answer_end],
                item.text,
                item.answer_start,
                item.answer_end,
                item.label,
                "given",
                [],
            )
            for number, item in enumerate(user_texts.read_texts(settings), start=1)
        ],
        columns=list(statements.COLUMNS),
    )


def _without_repeats(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Drop repeats of a judged span, and every span that stands with both labels; say which rows went.

    A span is a part of one text: several spans of a text, each with its own label, all stay.
    """
    starts = [
        text[:start] for text, start in zip(frame["text"], frame["answer_start"], strict=True)
    ]
    spans = zip(
        frame["text"].map(normalised),
        map(normalised, starts),
        frame["answer"].map(normalised),
        strict=True,
    )
    key = pd.Series(pd.factorize(pd.Series(list(spans), dtype=object))[0], index=frame.index)
    both = frame["label"].groupby(key).transform("nunique") > 1
    repeated = key.duplicated() & ~both
    dropped = {"dropped_both_labels": int(both.sum()), "dropped_repeats": int(repeated.sum())}
    for gone, reason in (
        (both, "stands with both labels"),
        (repeated, "came before with the same label"),
    ):
        if gone.any():
            log.warning(
                "%d rows dropped whose text %s: %s",
                gone.sum(),
                reason,
                columns_of(frame["id"][gone]),
            )
    return frame[~both & ~repeated].reset_index(drop=True), dropped


def _labels_left(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "no text is left"
    return f"all {len(frame)} texts that are left are {'hallucinated' if frame['label'].iloc[0] else 'true'}"


def _whole_groups(frame: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    """At most `limit` rows: whole groups in the seed's order, as long as they fit; rows keep their order."""
    if limit is None or len(frame) <= limit:
        return frame
    sizes = frame["group"].value_counts(sort=False)
    order = np.random.default_rng(seed).permutation(len(sizes))
    kept = sizes.index[order][np.cumsum(sizes.to_numpy()[order]) <= limit]
    chosen = frame[frame["group"].isin(kept)].reset_index(drop=True)
    if chosen["label"].nunique() < 2:
        raise UserError(f"max_examples: {limit} leaves no group with each label; raise it")
    return chosen

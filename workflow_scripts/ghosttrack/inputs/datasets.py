"""Labelled texts and questions of all sources: the rows of examples.parquet and questions.parquet.

Public data sets are read from the Hugging Face hub, or from a local copy named by `path`. A judged
span that occurs with both labels is dropped. The number of dropped rows is logged and kept in
`attrs`.
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
from ghosttrack.facts import remarks, statements
from ghosttrack.facts.answers import AnswerVerdict, is_matchable, judge
from ghosttrack.facts.contexts import context_of
from ghosttrack.facts.examples import (
    Example,
    Question,
    as_read,
    example_table,
    question_table,
    same_text,
)
from ghosttrack.inputs import answer_sets, counterfact, hub, user_texts
from ghosttrack.inputs.cells import Row, columns_of, require_columns, text_of
from ghosttrack.inputs.gold import answers_of
from ghosttrack.inputs.rows import read_rows
from ghosttrack.runtime.files import atomic_write
from ghosttrack.settings import ConflictSettings, DatasetSettings

log = logging.getLogger("ghosttrack")

# Few-shot demonstrations before each question of a generated data set.
SHOTS = 5


class QuestionAnswers(NamedTuple):
    """A question of a public data set with its answers, the usual one first."""

    relation: str
    question: str
    correct: list[str]
    incorrect: list[str]


class PublicDataset(NamedTuple):
    """A public data set: its hub id, configuration and split, and the function that reads a row."""

    hub_id: str
    config: str | None
    split: str
    read: Callable[[Row, int, str], QuestionAnswers]


@contextmanager
def named(dataset: str) -> Iterator[None]:
    """Prefix the message of a UserError with the data set's settings file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"config/datasets/{dataset}.yaml: {error}") from error


def load_examples(settings: DatasetSettings, seed: int, limit: int | None = None) -> pd.DataFrame:
    """Labelled texts of a `given` data set; label 1 = hallucinated.

    Args:
        settings: the data set.
        seed: selects the groups if `limit` or `settings.max_examples` does not allow all.
        limit: maximum number of examples; groups are never divided.
    Returns:
        One row per text, with the fields of `Example` as columns; `attrs` holds the source, its
        revision and the numbers of dropped rows.
    Raises:
        UserError: no network, missing column, invalid label, empty text, only one class.
    """
    limits = [count for count in (limit, settings.max_examples) if count is not None]
    most = min(limits) if limits else None
    if settings.conflict:
        plain = load_examples(
            settings.model_copy(update={"conflict": None, "max_examples": None}), seed
        )
        return _conflict(plain, settings.conflict, most, seed)
    if settings.source == "facts":
        frame = statements.build_statements(str(settings.table), seed, most)
        frame.attrs = {"source": f"facts: {settings.table}", "revision": None}
        return frame
    relations: list[dict[str, Any]] = []
    if settings.source == "file":
        frame, revision = _from_file(settings), None
    elif settings.source in answer_sets.READERS:
        found = answer_sets.READERS[settings.source](settings)
        texts = user_texts.texts_of_rows(found.rows, found.settings, _name(settings), found.numbers)
        frame, revision = example_table(texts), found.revision
    elif settings.source == "counterfact":
        path = Path(str(settings.path))
        listed, about = counterfact.examples(read_rows(path), str(path), seed)
        frame, revision = example_table(listed), None
        relations = [relation._asdict() for relation in about]
    else:
        items, revision = _items(settings)
        frame = example_table(_given_examples(settings.source, items))
    frame, dropped = _without_repeats(frame)
    if frame["label"].nunique() < 2:
        raise UserError(
            f"{settings.path or settings.source}: {_remaining_labels(frame)}; expected true and "
            f"hallucinated texts. {dropped['dropped_both_labels']} rows whose text has both labels "
            f"and {dropped['dropped_repeats']} repeats were dropped"
        )
    frame = _whole_groups(frame, most, seed)
    frame.attrs = {"source": _name(settings), "revision": revision, **dropped}
    if relations:
        frame.attrs["relations"] = relations
    log.info(
        "%d texts in %d groups, %d hallucinated; %s",
        len(frame),
        frame["group"].nunique(),
        frame["label"].sum(),
        dropped,
    )
    return frame


def _conflict(
    plain: pd.DataFrame, conflict: ConflictSettings, most: int | None, seed: int
) -> pd.DataFrame:
    """Statements after remarks, two rows per statement of `plain`, at most `most` rows.

    Raises:
        UserError: no prompt has one true and one false answer, or `most` is below two blocks.
    """
    pairs = example_table(remarks.paired(plain))
    if pairs.empty:
        raise UserError(
            f"conflict: none of the {plain['group'].nunique()} groups has a prompt with one true "
            "and one false answer; expected minimal pairs. Give both answers of a question as two "
            "rows (question_column, label_column), or both statements one group (answer_column, "
            "group_column), or leave out conflict"
        )
    smallest = 2 * int(pairs["group"].value_counts().min())
    if most is not None and most < 2 * smallest:
        raise UserError(
            f"max_examples: {most} is less than two blocks with remarks, of {smallest} texts each "
            "or more; raise it"
        )
    chosen = _whole_groups(pairs, most and most // 2, seed)
    relations = set(chosen["relation"]) if conflict.few_shot else ()
    contexts = {relation: context_of(relation) for relation in relations}
    frame = remarks.with_remarks(chosen, conflict.wordings, contexts)
    left_out = {"left_out_without_pair": len(plain) - len(pairs)}
    frame.attrs = {**plain.attrs, **left_out}
    log.info("%d texts after remarks (%s); %s", len(frame), ", ".join(conflict.wordings), left_out)
    return frame


def load_questions(
    settings: DatasetSettings, seed: int, count: int, *, chat: bool = False
) -> pd.DataFrame:
    """Questions of a `generated` data set with few-shot prompts, spread evenly over its relations.

    The few-shot demonstrations in the prompts are not among the returned questions.

    Args:
        settings: the data set.
        seed: selects the demonstrations and the questions.
        count: number of questions; `settings.max_examples` may lower it.
        chat: whether to add the messages of a chat.
    Returns:
        One row per question, with the fields of `Question` as columns. With `chat` also `turns`:
        messages of user and assistant in alternation, the demonstrations first.
    Raises:
        UserError: no network, missing column, no accepted answer, too few questions, or remarks
            in a chat.
    """
    wordings = settings.conflict.wordings if settings.conflict else []
    if wordings and chat:
        raise UserError(
            "conflict: remarks cannot be put into a chat template; set generation.prompt: plain, "
            "or leave out conflict"
        )
    count = min(count, settings.max_examples or count)
    if settings.source == "facts":
        frame = statements.build_questions(seed, count, wordings)
        frame.attrs = {"source": "facts", "revision": None}
        return (
            _with_turns(
                frame, [statements.demonstration_turns(relation) for relation in frame["relation"]]
            )
            if chat
            else frame
        )
    revision = None
    if settings.source == "file":
        questions = user_texts.read_questions(settings)
    else:
        items, revision = _items(settings)
        questions = [
            Question(
                "", same_text(item.question), item.relation, "", item.question, "", item.correct
            )
            for item in items
        ]
    distinct: dict[str, Question] = {}
    for question in questions:
        first = distinct.setdefault(same_text(question.question), question)
        if first is not question:
            accepted = _distinct([*first.gold, *question.gold])
            distinct[same_text(question.question)] = first._replace(gold=accepted)
    if len(distinct) < len(questions):
        log.info(
            "%d rows repeat the question of an earlier row; their accepted answers are added to it",
            len(questions) - len(distinct),
        )
    pool = list(distinct.values())
    if len(pool) <= SHOTS:
        raise UserError(
            f"path: {_name(settings)} holds {len(pool)} different questions; the prompt needs "
            f"{SHOTS} as demonstrations, so at least one more is required"
        )
    order = np.random.default_rng(seed).permutation(len(pool))
    demonstrations = [pool[index] for index in order[:SHOTS]]
    shown_groups = {question.group for question in demonstrations}
    shots = "".join(f"{_ask(shown.question)} {shown.gold[0]}\n\n" for shown in demonstrations)
    by_relation: dict[str, list[int]] = {}
    for index in order[SHOTS:]:
        if pool[index].group not in shown_groups:
            by_relation.setdefault(pool[index].relation, []).append(int(index))
    log.info("%d of %d questions are the demonstrations in the prompts", SHOTS, len(pool))
    hidden = len(pool) - SHOTS - sum(map(len, by_relation.values()))
    if not by_relation:
        raise UserError(
            f"path: {_name(settings)}: the {SHOTS} demonstrations in the prompt are of all groups, "
            "so that no question is left; make smaller groups (group_column), or add questions of "
            "other groups"
        )
    if hidden:
        log.warning(
            "%d of %d questions are not asked, because a demonstration in the prompt is of the same "
            "group; smaller groups (group_column) leave more",
            hidden,
            len(pool),
        )
    chosen = sorted(_round_robin(list(by_relation.values()), count // (2 if wordings else 1)))
    asked = [
        pool[index]._replace(
            id=f"{settings.source}-{index:05d}",
            prompt=shots + _ask(pool[index].question),
            other=_false_answer(pool, index, seed) if wordings else "",
        )
        for index in chosen
    ]
    if wordings:
        asked = remarks.ask_after_remarks(asked, [shots] * len(asked), wordings)
    frame = question_table(asked)
    frame.attrs = {"source": _name(settings), "revision": revision}
    earlier = [
        text for shown in demonstrations for text in (_with_mark(shown.question), shown.gold[0])
    ]
    return _with_turns(frame, [earlier] * len(frame)) if chat else frame


def _false_answer(pool: Sequence[Question], index: int, seed: int) -> str:
    """The usual answer to another question of the relation, at random, that is wrong here.

    No accepted answer contains it, and it contains none: "Paris, France" is not wrong for "Paris".
    """
    question = pool[index]
    for number in np.random.default_rng([seed, index]).permutation(len(pool)):
        if pool[number].relation != question.relation:
            continue
        answer = remarks.usual_answer(pool[number].gold)
        if _is_wrong(answer, question.gold):
            return answer
    raise UserError(
        f"conflict: the question {question.question!r} has the accepted answers {question.gold}, "
        f"and no other question of the relation {question.relation!r} has an answer that is wrong "
        "here: remove this question, add others, or leave out conflict"
    )


def _is_wrong(answer: str, gold: Sequence[str]) -> bool:
    return (
        is_matchable(answer)
        and judge(answer, gold) == AnswerVerdict.WRONG
        and not any(remarks.repeats(accepted, answer) for accepted in gold)
    )


def _with_turns(frame: pd.DataFrame, earlier: Sequence[list[str]]) -> pd.DataFrame:
    """The questions with a column `turns`: earlier messages, then the question."""
    asked = frame["question"].map(_with_mark)
    return frame.assign(
        turns=[[*messages, question] for messages, question in zip(earlier, asked, strict=True)]
    )


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write examples or questions atomically as parquet, with `attrs` in the file's metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    fields = {
        "answer_start": pa.int64(),
        "answer_end": pa.int64(),
        "label": pa.int64(),
        "gold": pa.list_(pa.string()),
        "arguable": pa.list_(pa.string()),
        "prompt_ids": pa.list_(pa.int64()),
        "spans": pa.list_(
            pa.struct([("start", pa.int64()), ("end", pa.int64()), ("probability", pa.float64())])
        ),
    }
    schema = pa.schema([(name, fields.get(name, pa.string())) for name in frame.columns])
    if "spans" in frame:
        frame = frame.assign(spans=[[span._asdict() for span in spans] for spans in frame["spans"]])
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    # pandas stores `attrs` under this key and restores them from it.
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), "PANDAS_ATTRS": json.dumps(frame.attrs)}
    )
    with atomic_write(path, "wb") as stream:
        parquet.write_table(table, stream)


def _ask(question: str) -> str:
    """The question as a prompt for completion."""
    return f"Q: {_with_mark(question)}\nA:"


def _with_mark(question: str) -> str:
    """The question with a question mark if it has no end mark; NQ-open has none."""
    return f"{question}{'' if question[-1] in '?.!:' else '?'}"


def _round_robin(lists: list[list[int]], count: int) -> list[int]:
    """Up to `count` entries, taken from the lists in turn, each list from its beginning."""
    ranked = [
        (position, number, entry)
        for number, entries in enumerate(lists)
        for position, entry in enumerate(entries)
    ]
    return [entry for _, _, entry in sorted(ranked)[:count]]


def _items(settings: DatasetSettings) -> tuple[list[QuestionAnswers], str | None]:
    public = PUBLIC[settings.source]
    revision = None
    if settings.path:
        rows: Iterable[Row] = read_rows(Path(settings.path))
    else:
        rows, revision = hub.rows(
            public.hub_id,
            public.config,
            public.split,
            None,
            streaming=False,
            key="source",
            instead="without the hub, set `path` in the data set's file to a local copy of the data set",
        )
    name = settings.path or public.hub_id
    return [public.read(row, number, name) for number, row in enumerate(rows, start=1)], revision


def _name(settings: DatasetSettings) -> str:
    """The file name or hub id of the source, without local directories."""
    if settings.path:
        return Path(settings.path).name
    return PUBLIC[settings.source].hub_id if settings.source in PUBLIC else answer_sets.RAGTRUTH


def _truthfulqa(row: Row, number: int, name: str) -> QuestionAnswers:
    cells = {str(key).strip().lower().replace(" ", "_"): value for key, value in row.items()}
    needed = ("category", "question", "best_answer", "correct_answers", "incorrect_answers")
    require_columns(cells, [("", column) for column in needed], name)
    best = text_of(cells, "best_answer", number, name)
    return QuestionAnswers(
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


def _halueval(row: Row, number: int, name: str) -> QuestionAnswers:
    require_columns(
        row, [("", column) for column in ("question", "right_answer", "hallucinated_answer")], name
    )
    question, right, wrong = (
        text_of(row, column, number, name)
        for column in ("question", "right_answer", "hallucinated_answer")
    )
    return QuestionAnswers("halueval", question, [right], [wrong])


def _triviaqa(row: Row, number: int, name: str) -> QuestionAnswers:
    cells = {str(key).lower(): value for key, value in row.items()}
    require_columns(cells, [("", "question"), ("", "answer")], name)
    answers = _required(answers_of(cells, "answer", number, name), number, name)
    return QuestionAnswers("triviaqa", text_of(cells, "question", number, name), answers, [])


def _nq_open(row: Row, number: int, name: str) -> QuestionAnswers:
    require_columns(row, [("", "question"), ("", "answer")], name)
    return QuestionAnswers(
        "nq_open",
        text_of(row, "question", number, name),
        _required(answers_of(row, "answer", number, name), number, name),
        [],
    )


def _popqa(row: Row, number: int, name: str) -> QuestionAnswers:
    require_columns(row, [("", "question"), ("", "possible_answers")], name)
    return QuestionAnswers(
        str(row.get("prop") or "popqa"),
        text_of(row, "question", number, name),
        _required(answers_of(row, "possible_answers", number, name), number, name),
        [],
    )


def _simpleqa(row: Row, number: int, name: str) -> QuestionAnswers:
    require_columns(row, [("", "problem"), ("", "answer")], name)
    return QuestionAnswers(
        "simpleqa",
        text_of(row, "problem", number, name),
        # One answer, which may contain a semicolon.
        [text_of(row, "answer", number, name, numbers=True)],
        [],
    )


# A local file may have the format of the hub or that of the data set's authors. A new public data
# set needs a reader above, an entry here, its name in settings/dataset.py (`source`), and a file
# in config/datasets.
PUBLIC = {
    "truthfulqa": PublicDataset("truthfulqa/truthful_qa", "generation", "validation", _truthfulqa),
    "halueval": PublicDataset("pminervini/HaluEval", "qa", "data", _halueval),
    "triviaqa": PublicDataset("mandarjoshi/trivia_qa", "rc.nocontext", "validation", _triviaqa),
    "popqa": PublicDataset("akariasai/PopQA", None, "test", _popqa),
    "simpleqa": PublicDataset("basicv8vc/SimpleQA", None, "test", _simpleqa),
    "nq_open": PublicDataset("google-research-datasets/nq_open", "nq_open", "validation", _nq_open),
}


def _required(answers: list[str], number: int, name: str) -> list[str]:
    if not answers:
        raise UserError(
            f"row {number} of {name}: no accepted answer; use a split with public answers "
            "(validation, not test)"
        )
    return _distinct(answers)


def _single(value: Any) -> list[str]:
    return [value.strip()] if isinstance(value, str) and value.strip() else []


def _distinct(answers: Iterable[str]) -> list[str]:
    """Answers in order, without those that are the same as an earlier one."""
    distinct: dict[str, str] = {}
    for answer in answers:
        distinct.setdefault(same_text(answer), answer)
    return list(distinct.values())


def _given_examples(source: str, items: list[QuestionAnswers]) -> Iterator[Example]:
    for number, item in enumerate(items, start=1):
        prompt = f"Q: {item.question}\nA:"
        start = len(prompt) + 1
        for label, letter, answers in ((0, "c", item.correct), (1, "i", item.incorrect)):
            for count, answer in enumerate(answers):
                yield Example(
                    id=f"{source}-{number:05d}-{letter}{count}",
                    group=same_text(item.question),
                    relation=item.relation,
                    subject="",
                    question=item.question,
                    prompt=prompt,
                    answer=answer,
                    text=f"{prompt} {answer}",
                    answer_start=start,
                    answer_end=start + len(answer),
                    label=label,
                    mode="given",
                    gold=item.correct,
                )


def _from_file(settings: DatasetSettings) -> pd.DataFrame:
    if settings.mode == "generated":
        raise UserError(
            f"mode: {settings.path} has mode: generated, expected labelled texts; set mode: given"
        )
    return example_table(user_texts.read_texts(settings))


def _without_repeats(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Drop repeats of a judged span, and every span that occurs with both labels.

    Different spans of one text may have different labels; all of them are kept.

    Returns:
        The remaining rows, and the numbers of dropped rows.
    """
    starts = [
        text[:start] for text, start in zip(frame["text"], frame["answer_start"], strict=True)
    ]
    spans = zip(
        map(same_text, as_read(frame)),
        map(same_text, starts),
        frame["answer"].map(same_text),
        strict=True,
    )
    key = pd.Series(pd.factorize(pd.Series(list(spans), dtype=object))[0], index=frame.index)
    both = frame["label"].groupby(key).transform("nunique") > 1
    repeated = key.duplicated() & ~both
    dropped = {"dropped_both_labels": int(both.sum()), "dropped_repeats": int(repeated.sum())}
    for rows, reason in (
        (both, "occurs with both labels"),
        (repeated, "repeats an earlier row with the same label"),
    ):
        if rows.any():
            log.warning(
                "%d rows dropped because their text %s: %s",
                rows.sum(),
                reason,
                columns_of(frame["id"][rows]),
            )
    return frame[~both & ~repeated].reset_index(drop=True), dropped


def _remaining_labels(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "no text remains"
    label = "hallucinated" if frame["label"].iloc[0] else "true"
    return f"all {len(frame)} remaining texts are {label}"


def _whole_groups(frame: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    """At most `limit` rows: whole groups, in random order; rows keep their order.

    A group that is larger than what is left is passed over, so that one large group, such as the
    texts of one context, does not end the sample early.
    """
    if limit is None or len(frame) <= limit:
        return frame
    sizes = frame["group"].value_counts(sort=False)
    kept, left = list[str](), limit
    for number in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if sizes.iloc[number] <= left:
            kept.append(sizes.index[number])
            left -= int(sizes.iloc[number])
    if not kept:
        raise UserError(
            f"max_examples: {limit} is below the size of the smallest group ({sizes.min()} texts); "
            "raise it"
        )
    chosen = frame[frame["group"].isin(kept)].reset_index(drop=True)
    if chosen["label"].nunique() < 2:
        raise UserError(f"max_examples: {limit} keeps texts of one label only; raise it")
    return chosen

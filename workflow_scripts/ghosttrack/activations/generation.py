"""Generated answers: continuations of few-shot prompts, judged by the gold answers."""

import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ghosttrack.activations.decoding import Continuation
from ghosttrack.errors import UserError
from ghosttrack.facts import answer_words, answers, remarks
from ghosttrack.facts.examples import COLUMNS, Example

LABELS = {answers.AnswerVerdict.CORRECT: 0, answers.AnswerVerdict.WRONG: 1}
EXAMPLE_COLUMNS = list(COLUMNS)
# Columns of samples.parquet; `correct` is null for ambiguous and empty answers.
SAMPLE_TYPES = {
    "id": "str",
    "sample": "int32",
    "answer": "str",
    "logprob_sum": "float64",
    "tokens": "int32",
    "cluster": "int32",
    "verdict": "str",
    "correct": "boolean",
}


class JudgedAnswers(NamedTuple):
    """`examples`: columns of examples.parquet; `counts`: of verdicts, in total and by relation."""

    examples: pd.DataFrame
    counts: dict[str, Any]


def choose_questions(questions: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """At most `count` of the questions, spread evenly over their relations, in the given order."""
    if len(questions) <= count:
        return questions
    shuffled = questions.iloc[np.random.default_rng(seed).permutation(len(questions))]
    turn = shuffled.groupby("relation", sort=False).cumcount().to_numpy()
    chosen = shuffled.index[np.argsort(turn, kind="stable")[:count]]
    return questions.loc[questions.index.isin(chosen)]


def uniform_numbers(
    ids: Sequence[str], samples: int, tokens: int, seed: int
) -> NDArray[np.float64]:
    """Random numbers in [0, 1), (questions x samples, tokens), from question id and seed alone."""
    generators = (np.random.default_rng([seed, zlib.crc32(name.encode())]) for name in ids)
    return np.concatenate([generator.random((samples, tokens)) for generator in generators])


def judge_answers(
    questions: pd.DataFrame, continuations: Sequence[str], dataset: str
) -> JudgedAnswers:
    """Cut continuations to their answers and judge them; count ambiguous and empty answers.

    Args:
        questions: columns id, group, relation, subject, question, prompt, gold (accepted answers),
            arguable (neither accepted nor wrong); with prompt_ids, the examples have that column, too.
        continuations: the greedy text after each prompt.
        dataset: named in errors.
    Raises:
        UserError: all answers are ambiguous or empty.
    """
    rows: list[dict[str, Any]] = []
    verdicts: list[tuple[str, str]] = []
    others = _others(questions)
    for question, continuation, wrong in zip(
        questions.to_dict("records"), continuations, others, strict=True
    ):
        gold = [str(one) for one in question["gold"]]
        answer = answers.first_answer(continuation, _names(question))
        verdict = answers.judge(answer, gold, wrong, question["arguable"])
        verdicts.append((str(question["relation"]), verdict.name.lower()))
        if verdict not in LABELS:
            continue
        start = continuation.index(answer)
        text = question["prompt"] + continuation[: start + len(answer)]
        rows.append(
            {
                **Example._field_defaults,
                **question,
                "answer": answer,
                "text": text,
                "gold": gold,
                "answer_start": len(text) - len(answer),
                "answer_end": len(text),
                "label": LABELS[verdict],
                "mode": "generated",
            }
        )
        if rows[-1]["other"]:
            # The question has its false answer there. An answer is compared with that of the
            # remark, which does not depend on the label.
            asserted = str(question["remark_answer"])
            rows[-1]["other"] = "" if remarks.repeats(answer, asserted) else asserted
    if not rows:
        raise UserError(
            f"data set {dataset}: none of {len(questions)} answers could be judged correct or "
            f"wrong ({_count(verdicts)}); raise generation.max_new_tokens, or choose a model that "
            "can answer these questions"
        )
    relations = sorted({relation for relation, _ in verdicts})
    counts = {
        **_count(verdicts),
        "by_relation": {
            name: _count(pair for pair in verdicts if pair[0] == name) for name in relations
        },
    }
    if "remark" in questions and (questions["remark"] != "").any():
        counts["remarks"] = _followed(questions, continuations)
    kept = [*EXAMPLE_COLUMNS, *(name for name in ("prompt_ids",) if name in questions)]
    return JudgedAnswers(pd.DataFrame(rows)[kept], counts)


def sample_table(
    questions: pd.DataFrame, greedy: Sequence[Continuation], drawn: Sequence[Continuation]
) -> pd.DataFrame:
    """All answers to all questions, in the columns of samples.parquet.

    Answers to a question share a cluster if they are the same words after normalisation. Clusters
    do not depend on the gold answers, because a score must not contain the label.

    Args:
        greedy: one continuation per question.
        drawn: the same number of sampled continuations per question, question by question.
    """
    samples = len(drawn) // max(len(questions), 1)
    rows: list[tuple[Any, ...]] = []
    for number, (question, wrong) in enumerate(
        zip(questions.to_dict("records"), _others(questions), strict=True)
    ):
        clusters: dict[answer_words.Words, int] = {}
        gold, names = [str(one) for one in question["gold"]], _names(question)
        continuations = [greedy[number], *drawn[number * samples : (number + 1) * samples]]
        for sample, continuation in enumerate(continuations):
            answer = answers.first_answer(continuation.text, names)
            verdict = answers.judge(answer, gold, wrong, question["arguable"])
            end = continuation.text.index(answer) + len(answer)
            tokens = sum(reached < end for reached in continuation.ends) + 1 if answer else 0
            cluster = clusters.setdefault(answer_words.normalise(answer), len(clusters))
            correct = LABELS[verdict] == 0 if verdict in LABELS else None
            rows.append(
                (
                    question["id"],
                    sample,
                    answer,
                    sum(continuation.logprobs[:tokens]),
                    tokens,
                    cluster,
                    str(verdict),
                    correct,
                )
            )
    return pd.DataFrame(rows, columns=list(SAMPLE_TYPES)).astype(SAMPLE_TYPES)


def _followed(questions: pd.DataFrame, continuations: Sequence[str]) -> dict[str, dict[str, int]]:
    """Numbers of questions after true and after false remarks, and of answers that repeat them."""
    result = {name: {"asked": 0, "followed": 0} for name in ("true", "false")}
    for question, continuation in zip(questions.to_dict("records"), continuations, strict=True):
        asserted = str(question["remark_answer"])
        answer = answers.first_answer(continuation, _names(question))
        found = result["false" if asserted == question["other"] else "true"]
        found["asked"] += 1
        found["followed"] += remarks.repeats(answer, asserted)
    return result


def _names(question: Mapping[Hashable, Any]) -> list[str]:
    """Answers that an answer to the question may repeat: accepted ones, and that of its remark."""
    return [str(name) for name in (*question["gold"], question.get("remark_answer", "")) if name]


def _others(questions: pd.DataFrame) -> list[list[str]]:
    """For each question, its relation's other gold answers and its own false answer, sorted."""
    pools = {
        relation: {str(one) for gold in part["gold"] for one in gold}
        for relation, part in questions.groupby("relation")
    }
    asserted = questions["other"] if "other" in questions else [""] * len(questions)
    return [
        sorted({*pools[relation], *filter(None, [false])} - {str(one) for one in gold})
        for relation, gold, false in zip(
            questions["relation"], questions["gold"], asserted, strict=True
        )
    ]


def _count(verdicts: Iterable[tuple[str, str]]) -> dict[str, int]:
    counts = Counter(verdict for _, verdict in verdicts)
    return {verdict.name.lower(): counts[verdict.name.lower()] for verdict in answers.AnswerVerdict}

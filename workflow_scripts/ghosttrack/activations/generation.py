"""The model's own answers: greedy completions of few-shot prompts, marked against the gold answers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ghosttrack.errors import UserError
from ghosttrack.facts import answers
from ghosttrack.inputs import models
from ghosttrack.progress import Progress

LABELS = {answers.Verdict.CORRECT: 0, answers.Verdict.WRONG: 1}
EXAMPLE_COLUMNS = [
    "id", "group", "relation", "subject", "question", "prompt", "answer", "text", "answer_start", "answer_end",
    "label", "mode", "gold",
]  # fmt: skip


class Marked(NamedTuple):
    """`examples`: the judged answers, in the columns of examples.parquet; `counts`: verdicts, also by relation."""

    examples: pd.DataFrame
    counts: dict[str, Any]


def choose_questions(questions: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """`count` of the questions, spread evenly over their relations, in their first order; all, if there are no more."""
    if len(questions) <= count:
        return questions
    shuffled = questions.iloc[np.random.default_rng(seed).permutation(len(questions))]
    turn = shuffled.groupby("relation", sort=False).cumcount().to_numpy()
    chosen = shuffled.index[np.argsort(turn, kind="stable")[:count]]
    return questions.loc[questions.index.isin(chosen)]


def complete(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, batch: int, dataset: str
) -> list[str]:
    """The greedy continuation of each prompt, as text.

    Prompts of like length share a batch, padded on the left; other batches give the same text but
    for exact ties in rounding.

    Raises:
        UserError: a prompt and its answer do not fit the model's context.
    """
    from transformers import GenerationConfig

    prefix = models.separator(tokenizer)
    limit = models.max_context(model.config.to_dict())
    ids_of = tokenizer(list(prompts), add_special_tokens=False, verbose=False, split_special_tokens=True)["input_ids"]
    coded = [[prefix, *ids] for ids in ids_of]
    longest = max(map(len, coded), default=0)
    if longest + max_new_tokens > limit:
        raise UserError(
            f"data set {dataset}: a prompt of {longest} tokens and generation.max_new_tokens {max_new_tokens} exceed "
            f"the {limit} tokens that the model takes; lower generation.max_new_tokens or shorten the questions"
        )
    # The model's own sampling defaults (penalties, temperature) would make this anything but plain greedy.
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=prefix,
    )  # fmt: skip
    results = [""] * len(coded)
    progress = Progress("generating", len(coded), "answers")
    by_length = sorted(range(len(coded)), key=lambda number: len(coded[number]))
    for at in range(0, len(by_length), batch):
        chosen = by_length[at : at + batch]
        width = max(len(coded[number]) for number in chosen)
        ids = torch.full((len(chosen), width), prefix)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(chosen):
            ids[row, width - len(coded[number]) :] = torch.tensor(coded[number])
            mask[row, width - len(coded[number]) :] = 1
        with torch.inference_mode():
            found = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).cpu()
        for number, row in zip(chosen, found, strict=True):
            results[number] = _continuation(tokenizer, coded[number][1:], row[width:].tolist())
        progress.advance(len(chosen))
    return results


def mark(questions: pd.DataFrame, continuations: Sequence[str], dataset: str) -> Marked:
    """Cut each continuation to its answer and judge it; ambiguous and empty answers are left out, and counted.

    Args:
        questions: columns id, group, relation, subject, question, prompt, gold (accepted answers).
        continuations: what the model wrote after each prompt.
        dataset: named in errors.
    Raises:
        UserError: no answer could be judged.
    """
    rows: list[dict[str, Any]] = []
    verdicts: list[tuple[str, str]] = []
    others = _others(questions)
    for question, continuation, wrong in zip(questions.to_dict("records"), continuations, others, strict=True):
        answer = answers.first_answer(continuation)
        gold = [str(one) for one in question["gold"]]
        verdict = answers.judge(answer, gold, wrong)
        verdicts.append((str(question["relation"]), verdict.name.lower()))
        if verdict not in LABELS:
            continue
        start = continuation.index(answer)
        text = question["prompt"] + continuation[: start + len(answer)]
        rows.append(
            {
                **question, "answer": answer, "text": text, "gold": gold,
                "answer_start": len(text) - len(answer), "answer_end": len(text),
                "label": LABELS[verdict], "mode": "generated",
            }
        )  # fmt: skip
    if not rows:
        raise UserError(
            f"data set {dataset}: none of {len(questions)} answers could be marked ({_count(verdicts)}); "
            "raise generation.max_new_tokens, or take a model that can answer these questions"
        )
    relations = sorted({relation for relation, _ in verdicts})
    counts = {
        **_count(verdicts),
        "by_relation": {name: _count(pair for pair in verdicts if pair[0] == name) for name in relations},
    }
    return Marked(pd.DataFrame(rows)[EXAMPLE_COLUMNS], counts)


def _others(questions: pd.DataFrame) -> list[list[str]]:
    """For each question, the gold answers of the other questions of its relation, less its own, sorted."""
    pools = {
        relation: {str(one) for gold in part["gold"] for one in gold}
        for relation, part in questions.groupby("relation")
    }
    return [
        sorted(pools[relation] - {str(one) for one in gold})
        for relation, gold in zip(questions["relation"], questions["gold"], strict=True)
    ]


def _count(verdicts: Iterable[tuple[str, str]]) -> dict[str, int]:
    found = Counter(verdict for _, verdict in verdicts)
    return {verdict.name.lower(): found[verdict.name.lower()] for verdict in answers.Verdict}


def _continuation(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """Text of the new tokens as it stands after the prompt: some tokenizers drop a leading space when decoded alone."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before: str = tokenizer.decode(prompt, **options)
    after: str = tokenizer.decode(prompt + new, **options)
    return after[len(before) :]

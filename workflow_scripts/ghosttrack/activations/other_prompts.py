"""Each answer after other prompts: the baseline of PMI, and what an answer's activations are without its subject.

No label is read. An answer meets prompts of its own relation with which it makes no text of the data set: whether a text
is true is so never part of its own baseline, nor is its partner in a swap block.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ghosttrack.activations import shared_prefix
from ghosttrack.activations.example_extraction import HEAD_ROWS, Beginnings, logits_of
from ghosttrack.activations.example_tokens import Encoded, encode
from ghosttrack.activations.extraction import Site, captured, site_modules
from ghosttrack.activations.shared_prefix import Started
from ghosttrack.progress import Progress

# Where few answers share many prompts, each answer meets more of them, up to so many times the wanted count: on us_cities
# (46 answers, 400 prompts) PMI reaches AUROC .863 with 8 prompts and .883 with 35.
MOST = 4
# A mean over fewer prompts is one prompt's opinion.
LEAST_PROMPTS = 2

Floats = npt.NDArray[np.float64]


class Baseline(NamedTuple):
    """What answers are after other prompts; NaN for an example whose answer met too few.

    logprob_sum, logprob_mean, logprob_first: (examples,) mean over prompts, in nats; prompts: (examples,) how many.
    activation: (layers, examples, d_model) mean over the answer's tokens and over prompts.
    """

    logprob_sum: Floats
    logprob_mean: Floats
    logprob_first: Floats
    prompts: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]


def choose_pairs(examples: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Texts that join an answer with another prompt of its relation: columns of `encode`, and `owner`, (pairs,).

    `owner` numbers the distinct (relation, answer) in order of appearance. The choice for one answer depends on the
    prompts of its relation, the answer and the seed alone.

    Args:
        examples: columns relation, mode, text, answer, answer_start. Texts without relation are one relation; without a
            prompt before its answer, a text neither gives nor gets any.
        count: prompts for each answer; fewer where there are no more, up to `MOST` times as many where answers are few.
    """
    heads = [text[:start] for text, start in zip(examples["text"], examples["answer_start"], strict=True)]
    known = examples.assign(head=heads, owner=owners(examples))
    known = known[[bool(head.strip()) for head in heads]]
    rows: list[dict[str, Any]] = []
    for relation, part in known.groupby("relation", sort=False):
        prompts = list(dict.fromkeys(part["head"]))
        # half as many answers for a prompt as prompts for an answer
        wanted = min(MOST * count, max(count, -(-count * len(prompts) // (2 * part["owner"].nunique()))))
        for (owner, answer), own in part.groupby(["owner", "answer"], sort=False):
            taken = set(own["head"])
            free = [prompt for prompt in prompts if prompt not in taken]
            generator = np.random.default_rng([seed, *(zlib.crc32(str(key).encode()) for key in (relation, answer))])
            chosen = generator.permutation(len(free))[: wanted if len(free) >= LEAST_PROMPTS else 0]
            rows += [
                {
                    "id": f"{answer!r} after {free[at]!r}", "relation": relation, "mode": own["mode"].iloc[0],
                    "text": f"{free[at]}{answer}", "answer_start": len(free[at]), "answer_end": len(free[at]) + len(answer),
                    "owner": owner,
                }
                for at in sorted(chosen)
            ]  # fmt: skip
    return pd.DataFrame(rows, columns=["id", "relation", "mode", "text", "answer_start", "answer_end", "owner"])


def owners(examples: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Number of each example's (relation, answer), (examples,)."""
    keys = pd.MultiIndex.from_frame(examples[["relation", "answer"]])
    return np.asarray(pd.factorize(keys)[0], dtype=np.int64)


def measure(
    model: Any, tokenizer: Any, examples: pd.DataFrame, layers: Sequence[int], *, site: Site, count: int, seed: int,
    limit: int, batch: int, dataset: str,
) -> Baseline:  # fmt: skip
    """Let every answer follow about `count` other prompts (see `choose_pairs`), and average over them.

    What prompts share is computed once, and each prompt once for all of its answers, so the cost is that of the
    answers' tokens: about count x distinct answers x tokens of an answer.

    Args:
        layers: ascending, 0-based; limit: tokens that the model takes; batch: texts per forward pass.
    """
    owner = owners(examples)
    pairs = choose_pairs(examples, count, seed)
    width, number = model.config.get_text_config().hidden_size, int(owner.max(initial=-1)) + 1
    sums = np.zeros((3, number))
    states = np.zeros((len(layers), number, width), dtype=np.float32)
    times = np.zeros(number, dtype=np.int64)
    if len(pairs):
        encoded = encode(pairs, tokenizer, limit, dataset)
        of_pair = pairs["owner"].to_numpy(dtype=np.int64)
        progress = Progress("answers after other prompts", len(pairs), "pairs")
        with torch.inference_mode(), captured(site_modules(model, layers, site), stop=False) as outputs:
            for rows, found in _batches(model, encoded, outputs, batch):
                for place, whose in enumerate(of_pair[rows]):
                    sums[:, whose] += found.logprob[:, place]
                    states[:, whose] += found.states[:, place]
                    times[whose] += 1
                progress.advance(len(rows))
    with np.errstate(invalid="ignore"):
        mean, activation = sums / times, np.asarray(states / times[:, None], dtype=np.float32)
    total, each, first = mean[:, owner]
    return Baseline(total, each, first, times[owner], activation[:, owner])


class _Answers(NamedTuple):
    """logprob: (3, texts) sum, mean and first over an answer's tokens; states: (layers, texts, d_model) their mean."""

    logprob: Floats
    states: npt.NDArray[np.float32]


def _batches(
    model: Any, encoded: Sequence[Encoded], outputs: list[torch.Tensor], batch: int
) -> Iterator[tuple[list[int], _Answers]]:
    """Batches of texts, each prompt computed once: numbers of the texts, and what their answers came to."""
    begun = Beginnings(model)
    texts_of: dict[tuple[bytes, bytes], list[int]] = {}
    for number, one in enumerate(encoded):
        texts_of.setdefault((one.before.tobytes(), one.ids[: one.answer[0]].tobytes()), []).append(number)
    # prompts of one beginning and one length go together: their keys and values hold no padding
    alike: dict[tuple[bytes, int], list[list[int]]] = {}
    for (before, _), texts in texts_of.items():
        alike.setdefault((before, int(encoded[texts[0]].answer[0])), []).append(texts)
    for (_, length), prompts in alike.items():
        for at in range(0, len(prompts), batch):
            chosen = prompts[at : at + batch]
            first = [encoded[texts[0]] for texts in chosen]
            started = shared_prefix.start(model, [one.ids[:length] for one in first], begun.after(first[0].before))
            after = torch.log_softmax(logits_of(model, started.final), dim=-1)  # (prompts, vocabulary)
            asked = [(number, row) for row, numbers in enumerate(chosen) for number in numbers]
            asked.sort(key=lambda each: len(encoded[each[0]].answer))
            for start in range(0, len(asked), batch):
                part = asked[start : start + batch]
                numbers, rows = [number for number, _ in part], [row for _, row in part]
                answers = [encoded[number].ids[encoded[number].answer] for number in numbers]
                yield numbers, _answers(model, answers, started, rows, after, outputs)


def _answers(
    model: Any, answers: Sequence[npt.NDArray[np.int64]], started: Started, rows: Sequence[int], after: torch.Tensor,
    outputs: list[torch.Tensor],
) -> _Answers:  # fmt: skip
    final = shared_prefix.forward(model, answers, started, rows)
    size = np.array([len(answer) for answer in answers])
    own = torch.from_numpy(np.arange(final.shape[1])[None] < size[:, None])  # (texts, tokens)
    first = np.array([float(after[row, answer[0]]) for row, answer in zip(rows, answers, strict=True)])
    total = first.copy()
    text = np.repeat(np.arange(len(answers)), size - 1)
    place = torch.from_numpy(np.concatenate([np.arange(length - 1) for length in size]).astype(np.int64))
    target = torch.from_numpy(np.concatenate([answer[1:] for answer in answers]))
    hidden = final[torch.from_numpy(text), place]  # where each later token was predicted
    for start in range(0, len(target), HEAD_ROWS):
        part = slice(start, start + HEAD_ROWS)
        logs = torch.log_softmax(logits_of(model, hidden[part]), dim=-1)
        np.add.at(total, text[part], logs.gather(1, target[part, None].to(logs.device))[:, 0].cpu().double().numpy())
    weight = (own / own.sum(dim=1, keepdim=True)).to(final.device)
    states = torch.stack([torch.einsum("atd,at->ad", output.float(), weight) for output in outputs])
    return _Answers(np.stack([total, total / size, first]), states.cpu().numpy())

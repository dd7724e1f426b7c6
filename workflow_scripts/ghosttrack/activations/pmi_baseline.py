"""PMI baseline: each answer after other prompts of its relation.

PMI subtracts the mean log-probability of an answer after other prompts. The counterfactual-prompt
mean is the mean activation of the answer after the same prompts: what the answer contributes by
itself. No label is read. An answer is paired only with prompts with which it forms no text of the
data set, so its baseline contains neither its own true or false text nor its counterpart in a
minimal-pair block.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.packed_texts import Pack, PackedReader
from ghosttrack.facts.remarks import strata
from ghosttrack.inputs import chat

# Where few answers share many prompts, each answer gets up to this many times the requested
# prompts: on us_cities (46 answers, 400 prompts) PMI reaches AUROC .863 with 8 prompts and .883
# with 35.
MAX_MULTIPLE = 4
# A mean needs at least two prompts.
MIN_PROMPTS = 2

Floats = npt.NDArray[np.float64]


class BaselineMeans(NamedTuple):
    """Means over the other prompts of each answer; NaN for an example whose answer had none.

    logprob_sum, logprob_mean, logprob_first: (examples,) mean over prompts, in nats.
    prompts: (examples,) number of prompts.
    activation: (layers, examples, d_model) mean over the answer's tokens and over prompts.
    """

    logprob_sum: Floats
    logprob_mean: Floats
    logprob_first: Floats
    prompts: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float32]


def choose_pairs(examples: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Texts that join an answer with another prompt of its relation.

    The columns are those of `encode`, and `number` from `answer_numbers`. The prompts of an answer
    depend only on the prompts of its relation, the answer and the seed.

    Args:
        examples: columns relation, mode, text, answer, answer_start; for answers in a chat template
            also prompt and prompt_ids, which the pairs then have, too. Texts without a relation
            count as one relation, and texts after remarks of one wording as a relation of their
            own. A text without a prompt before its answer, or with a context, neither gives nor
            gets one.
        count: prompts per answer: fewer if the relation has no more, up to MAX_MULTIPLE times as
            many if it has few answers.
    """
    heads = [
        text[:start] for text, start in zip(examples["text"], examples["answer_start"], strict=True)
    ]
    known = examples.assign(head=heads, number=answer_numbers(examples), stratum=strata(examples))
    shared = [name for name in ("relation", "mode", "wording") if name in known]
    in_context = examples.get("context", pd.Series("", index=examples.index)).fillna("") != ""
    known = known[[bool(head.strip()) for head in heads] & ~in_context.to_numpy()]
    rows: list[dict[str, Any]] = []
    for stratum, part in known.groupby("stratum", sort=False):
        prompts = list(dict.fromkeys(part["head"]))
        # Half as many answers per prompt as prompts per answer.
        wanted = min(
            MAX_MULTIPLE * count,
            max(count, -(-count * len(prompts) // (2 * part["number"].nunique()))),
        )
        for (number, answer), same in part.groupby(["number", "answer"], sort=False):
            taken, kept = set(same["head"]), same[shared].iloc[0].to_dict()
            free = [prompt for prompt in prompts if prompt not in taken]
            generator = np.random.default_rng(
                [seed, *(zlib.crc32(str(key).encode()) for key in (stratum, answer))]
            )
            chosen = generator.permutation(len(free))[: wanted if len(free) >= MIN_PROMPTS else 0]
            rows += [
                {
                    "id": f"{answer!r} after {free[at]!r}",
                    **kept,
                    "text": f"{free[at]}{answer}",
                    "answer_start": len(free[at]),
                    "answer_end": len(free[at]) + len(answer),
                    "number": number,
                }
                for at in sorted(chosen)
            ]
    columns = ["id", *shared, "text", "answer_start", "answer_end", "number"]
    pairs = pd.DataFrame(rows, columns=columns)
    return _with_prompts(pairs, known) if chat.is_asked(examples) else pairs


def _with_prompts(pairs: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The pairs with the columns prompt and prompt_ids of the examples whose prompts they have."""
    by_head = known.drop_duplicates("head").set_index("head")
    heads = [text[:start] for text, start in zip(pairs["text"], pairs["answer_start"], strict=True)]
    return pairs.assign(
        **{name: by_head.loc[heads, name].to_numpy() for name in ("prompt", "prompt_ids")}
    )


def answer_numbers(examples: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Index of each example's distinct (stratum, answer), in order of appearance, (examples,)."""
    keys = pd.MultiIndex.from_arrays([strata(examples), examples["answer"]])
    return np.asarray(pd.factorize(keys)[0], dtype=np.int64)


class PmiBaseline:
    """Sums log-probabilities and activations of answers after other prompts.

    Args:
        pairs: from `choose_pairs`.
        encoded: the same texts as tokens.
        layers: number of layers.
        width: d_model.
    """

    def __init__(
        self, pairs: pd.DataFrame, encoded: Sequence[Encoded], layers: int, width: int
    ) -> None:
        self.encoded = encoded
        self._answer = pairs["number"].to_numpy(dtype=np.int64)
        answers = int(self._answer.max(initial=-1)) + 1
        self._sums = np.zeros((3, answers))
        self._states = np.zeros((layers, answers, width), dtype=np.float32)
        self._prompts = np.zeros(answers, dtype=np.int64)

    def take(
        self,
        reader: PackedReader,
        pack: Pack,
        texts: Sequence[int],
        offset: int,
        final: torch.Tensor,
        outputs: Sequence[torch.Tensor],
    ) -> None:
        """Add some texts of a pack to the sums.

        Args:
            offset: number of the first pair among the texts of the pack.
            final: (length, d_model) final hidden states.
            outputs: of each layer, (1, length, d_model).
        """
        numbers = [pack.numbers[text] - offset for text in texts]
        pairs = [self.encoded[number] for number in numbers]
        size = np.array([len(one.answer) for one in pairs])
        first = np.cumsum(size) - size
        places = [pack.places[text] for text in texts]
        before, at = (
            np.concatenate(
                [place[one.answer - step] for place, one in zip(places, pairs, strict=True)]
            )
            for step in (1, 0)
        )
        logprob = reader.token_statistics(
            final, before, pack.ids[at], np.zeros(len(at), dtype=bool)
        ).logprob.astype(np.float64)
        total = np.add.reduceat(logprob, first)
        answer = self._answer[numbers]
        for summed, values in zip(self._sums, (total, total / size, logprob[first]), strict=True):
            np.add.at(summed, answer, values)
        np.add.at(self._prompts, answer, 1)
        size = np.array([len(one.read) for one in pairs])
        first = np.cumsum(size) - size
        read = np.concatenate([place[one.read] for place, one in zip(places, pairs, strict=True)])
        rows = torch.from_numpy(read)  # on the CPU: outputs may be on another GPU than `final`
        for state, output in zip(self._states, outputs, strict=True):
            states = output[0, rows].float().cpu().numpy()
            means = (np.add.reduceat(states, first, axis=0) / size[:, None]).astype(np.float32)
            np.add.at(state, answer, means)

    def means(self, examples: pd.DataFrame) -> BaselineMeans:
        """The means for every example."""
        answer = answer_numbers(examples)
        missing = (0, int(answer.max(initial=-1)) + 1 - len(self._prompts))
        sums = np.pad(self._sums, ((0, 0), missing))
        states = np.pad(self._states, ((0, 0), missing, (0, 0)))
        prompts = np.pad(self._prompts, missing)
        with np.errstate(invalid="ignore"):
            logprobs = sums / prompts
            activation = np.asarray(states / prompts[:, None], dtype=np.float32)
        total, mean, first = logprobs[:, answer]
        return BaselineMeans(total, mean, first, prompts[answer], activation[:, answer])

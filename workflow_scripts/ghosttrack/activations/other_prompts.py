"""Each answer after other prompts: the baseline of PMI, and what an answer's activations are without its subject.

No label is read. An answer meets prompts of its own relation with which it makes no text of the data set: whether a text
is true is so never part of its own baseline, nor is its partner in a swap block.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.packed_texts import Pack, Reader
from ghosttrack.inputs import chat

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
        examples: columns relation, mode, text, answer, answer_start, and prompt and prompt_ids if they were asked in a
            chat template, which the pairs then have, too. Texts without relation are one relation; without a
            prompt before its answer, a text neither gives nor gets any.
        count: prompts for each answer; fewer where there are no more, up to `MOST` times as many where answers are few.
    """
    heads = [
        text[:start] for text, start in zip(examples["text"], examples["answer_start"], strict=True)
    ]
    known = examples.assign(head=heads, owner=owners(examples))
    known = known[[bool(head.strip()) for head in heads]]
    rows: list[dict[str, Any]] = []
    for relation, part in known.groupby("relation", sort=False):
        prompts = list(dict.fromkeys(part["head"]))
        # half as many answers for a prompt as prompts for an answer
        wanted = min(
            MOST * count, max(count, -(-count * len(prompts) // (2 * part["owner"].nunique())))
        )
        for (owner, answer), own in part.groupby(["owner", "answer"], sort=False):
            taken = set(own["head"])
            free = [prompt for prompt in prompts if prompt not in taken]
            generator = np.random.default_rng(
                [seed, *(zlib.crc32(str(key).encode()) for key in (relation, answer))]
            )
            chosen = generator.permutation(len(free))[: wanted if len(free) >= LEAST_PROMPTS else 0]
            rows += [
                {
                    "id": f"{answer!r} after {free[at]!r}",
                    "relation": relation,
                    "mode": own["mode"].iloc[0],
                    "text": f"{free[at]}{answer}",
                    "answer_start": len(free[at]),
                    "answer_end": len(free[at]) + len(answer),
                    "owner": owner,
                }
                for at in sorted(chosen)
            ]
    pairs = pd.DataFrame(
        rows, columns=["id", "relation", "mode", "text", "answer_start", "answer_end", "owner"]
    )
    return _with_prompts(pairs, known) if chat.is_asked(examples) else pairs


def _with_prompts(pairs: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The pairs with the columns prompt and prompt_ids of the examples whose prompts they have."""
    asked = known.drop_duplicates("head").set_index("head")
    heads = [text[:start] for text, start in zip(pairs["text"], pairs["answer_start"], strict=True)]
    return pairs.assign(
        **{name: asked.loc[heads, name].to_numpy() for name in ("prompt", "prompt_ids")}
    )


def owners(examples: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Number of each example's (relation, answer), (examples,)."""
    keys = pd.MultiIndex.from_frame(examples[["relation", "answer"]])
    return np.asarray(pd.factorize(keys)[0], dtype=np.int64)


class Asked:
    """Answers that are read after other prompts, and what they come to.

    Args:
        pairs: from `choose_pairs`; encoded: the same texts as tokens.
        layers: how many are read; width: d_model.
    """

    def __init__(
        self, pairs: pd.DataFrame, encoded: Sequence[Encoded], layers: int, width: int
    ) -> None:
        self.encoded = encoded
        self._owner = pairs["owner"].to_numpy(dtype=np.int64)
        number = int(self._owner.max(initial=-1)) + 1
        self._sums = np.zeros((3, number))
        self._states = np.zeros((layers, number, width), dtype=np.float32)
        self._times = np.zeros(number, dtype=np.int64)

    def take(
        self,
        reader: Reader,
        pack: Pack,
        texts: Sequence[int],
        offset: int,
        final: torch.Tensor,
        outputs: Sequence[torch.Tensor],
    ) -> None:
        """Add what some texts of a pack came to.

        Args:
            offset: what to take off their numbers for a place in `encoded`.
            final: (length, d_model) final hidden states; outputs: of each layer (1, length, d_model).
        """
        numbers = [pack.numbers[text] - offset for text in texts]
        texts_read = [self.encoded[number] for number in numbers]
        answers = [one.answer for one in texts_read]
        size = np.array([len(answer) for answer in answers])
        first = np.cumsum(size) - size
        places = [pack.places[text] for text in texts]
        before = np.concatenate(
            [place[answer - 1] for place, answer in zip(places, answers, strict=True)]
        )
        at = np.concatenate([place[answer] for place, answer in zip(places, answers, strict=True)])
        found = reader.opinions(
            final, before, pack.ids[at], np.zeros(len(at), dtype=bool)
        ).logprob.astype(np.float64)
        total = np.add.reduceat(found, first)
        owner = self._owner[numbers]
        for summed, values in zip(self._sums, (total, total / size, found[first]), strict=True):
            np.add.at(summed, owner, values)
        np.add.at(self._times, owner, 1)
        size = np.array([len(one.read) for one in texts_read])
        first = np.cumsum(size) - size
        read = np.concatenate(
            [place[one.read] for place, one in zip(places, texts_read, strict=True)]
        )
        rows = torch.from_numpy(read).to(final.device)
        for kept, output in zip(self._states, outputs, strict=True):
            each = (
                np.add.reduceat(output[0, rows].float().cpu().numpy(), first, axis=0)
                / size[:, None]
            )
            np.add.at(kept, owner, each.astype(np.float32))

    def baseline(self, examples: pd.DataFrame) -> Baseline:
        """The means, of every example."""
        owner = owners(examples)
        missing = int(owner.max(initial=-1)) + 1 - len(self._times)
        sums = np.pad(self._sums, ((0, 0), (0, missing)))
        states, times = (
            np.pad(self._states, ((0, 0), (0, missing), (0, 0))),
            np.pad(self._times, (0, missing)),
        )
        with np.errstate(invalid="ignore"):
            mean, activation = sums / times, np.asarray(states / times[:, None], dtype=np.float32)
        total, each, first = mean[:, owner]
        return Baseline(total, each, first, times[owner], activation[:, owner])

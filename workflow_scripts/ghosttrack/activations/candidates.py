"""Each answer among the other answers of its relation: what the model, and a layer before its end, holds against it.

Where an answer is about to begin, the model has said of every other answer's first token how likely it is too. How the stated
answer stands against its rivals needs no second pass, in the model's output, and if the residual stream of an earlier block is
read with the output's own norm and head (logit lens, nostalgebraist 2020). No label is read: the rivals of an answer are
the answers of the data set, true or not. Tokens that all answers of a relation begin with, as the space before a number, count to the prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.packed_texts import HEAD_ROWS, Pack, logits_of
from ghosttrack.activations.store import smallest_float
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import site_modules
from ghosttrack.runtime import tables

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Blocks whose states are kept, by depth; the first of them is read with the lens. On smollm2-135m the stated answer is
# at chance for the lens up to three quarters of the depth and stands out at once at four fifths.
DEPTHS = (0.8, 0.87, 0.93, 0.97)
# Prompts and answers that meet in one table; of more, every k-th prompt makes a table of its own.
MOST_PROMPTS = 2048
# With fewer there is nothing to compare.
LEAST_PROMPTS = LEAST_ANSWERS = 2
# Alternations of Sinkhorn and Knopp (1967): on smollm2-135m the AUROC of shares is the same after twenty and after three hundred.
ROUNDS = 30
# Scores in standard deviations are as sharp as log-odds at about this slope.
SLOPE = 2.0
KINDS = ("relative", "lead", "rank", "matched", "matched_units")
# Prefixes of the columns: of the output, and of the lens.
FINAL, LENS = "final", "lens"


class States(NamedTuple):
    """What the model holds where answers begin; float16, or float32 where that cannot hold it.

    blocks: by block, (prompts, d_model), residual stream at a prompt's last token; words: (prompts, d), mean token
    embedding of the prompt's own tokens, before any computation; prompt: (examples,) rows of both.
    unembedding: (answers, d), rows of the output embedding, of answers' first tokens; answer: (examples,) rows of it.
    """

    blocks: Mapping[int, npt.NDArray[np.floating[Any]]]
    words: npt.NDArray[np.floating[Any]]
    prompt: Ints
    unembedding: npt.NDArray[np.floating[Any]]
    answer: Ints


def read_blocks(count: int) -> list[int]:
    """Blocks whose states are kept, of a model of `count`; never the last, whose state is the output."""
    return sorted({min(round(depth * count), count - 1) - 1 for depth in DEPTHS} - {-1})


class Rivals:
    """Collects, from the passes over a data set's texts, the states at the last token of each prompt.

    Args:
        model: causal language model; encoded: the examples as tokens; relations: of each example, (examples,).
    """

    def __init__(self, model: Any, encoded: Sequence[Encoded], relations: Sequence[str]) -> None:
        self._model = model
        self._encoded = encoded
        self.blocks = read_blocks(len(models.blocks(model)))
        self._relation: Ints = pd.factorize(np.array(relations, dtype=object))[0].astype(np.int64)
        shared = _shared(encoded, self._relation)
        self._at = [
            int(one.answer[0]) + int(shared[number])
            for one, number in zip(encoded, self._relation, strict=True)
        ]
        heads = [
            (each, one.before.tobytes(), one.ids[:at].tobytes())
            for each, one, at in zip(relations, encoded, self._at, strict=True)
        ]
        self._first = np.array(
            [one.ids[at] for one, at in zip(encoded, self._at, strict=True)], dtype=np.int64
        )
        self._prompt: Ints = pd.MultiIndex.from_tuples(heads).factorize()[0].astype(np.int64)
        width = model.config.get_text_config().hidden_size
        self._states = torch.zeros(len(self.blocks), int(self._prompt.max()) + 1, width)
        self._final: torch.Tensor | None = None

    def modules(self) -> list[nn.Module]:
        """The modules whose outputs `take` wants, in the order of `blocks`."""
        return site_modules(self._model, self.blocks, "resid_post") if self.blocks else []

    def take(
        self, pack: Pack, texts: Sequence[int], final: torch.Tensor, outputs: Sequence[torch.Tensor]
    ) -> None:
        """Keep what some texts of a pack, all of them examples, have at the end of their prompts.

        Args:
            final: (length, d) final hidden states; outputs: of each module (1, length, d_model).
        """
        numbers = [pack.numbers[text] for text in texts]
        places = torch.tensor(
            [
                int(pack.places[text][self._at[number] - 1])
                for text, number in zip(texts, numbers, strict=True)
            ]
        )
        rows = torch.from_numpy(self._prompt[numbers])
        if self._final is None:
            self._final = torch.zeros(self._states.shape[1], final.shape[-1])
        self._final[rows] = final[places].float().cpu()
        for kept, output in zip(self._states, outputs, strict=True):
            kept[rows] = output[0, places].float().cpu()

    def states(self) -> States:
        """What was kept, for a probe."""
        first, answer = np.unique(self._first, return_inverse=True)
        head = self._model.get_output_embeddings().weight.detach()[torch.from_numpy(first)]
        blocks = {
            block: _stored(each) for block, each in zip(self.blocks, self._states, strict=True)
        }
        return States(
            blocks, _stored(self._words()), self._prompt, _stored(head), answer.astype(np.int64)
        )

    def _words(self) -> torch.Tensor:
        """Mean token embedding of each prompt's own tokens; of its last one where it has none of its own."""
        embed = self._model.get_input_embeddings()
        means = []
        with torch.inference_mode():
            for number in np.unique(self._prompt, return_index=True)[1]:
                one, at = self._encoded[number], self._at[number]
                own = np.concatenate([one.before, one.ids[:at]])[
                    min(one.lead, len(one.before) + at - 1) :
                ]
                means.append(
                    embed(torch.from_numpy(own).to(self._model.device)).float().mean(dim=0).cpu()
                )
        return torch.stack(means)

    @torch.inference_mode()
    def table(self) -> pd.DataFrame:
        """How each answer stands against its rivals, (examples, 2 x KINDS): of the output, and of the lens.

        NaN where a relation has fewer than two prompts or two answers that begin differently; the lens also where the
        model has no norm after its last block.
        """
        assert self._final is not None, "take was called"
        columns = self._standing(FINAL, self._final, None)
        norm = final_norm(self._model, self._encoded[0]) if self.blocks else None
        if norm is None:
            return columns.assign(**{f"{LENS}_{kind}": np.nan for kind in KINDS})
        return pd.concat([columns, self._standing(LENS, self._states[0], norm)], axis=1)

    def _standing(self, prefix: str, hidden: torch.Tensor, norm: nn.Module | None) -> pd.DataFrame:
        result = np.full((len(self._first), len(KINDS)), np.nan)
        for relation in range(int(self._relation.max()) + 1):
            every = np.flatnonzero(self._relation == relation)
            prompts = np.unique(self._prompt[every])
            parts = -(-len(prompts) // MOST_PROMPTS)
            for part in range(parts):
                shown = prompts[part::parts]
                own = every[np.isin(self._prompt[every], shown)]
                answers, answer = np.unique(self._first[own], return_inverse=True)
                if len(shown) >= LEAST_PROMPTS and len(answers) >= LEAST_ANSWERS:
                    logits = self._logits(hidden[torch.from_numpy(shown)], norm, answers)
                    result[own] = standing(
                        logits, np.searchsorted(shown, self._prompt[own]), answer
                    )
        return pd.DataFrame(result, columns=[f"{prefix}_{kind}" for kind in KINDS])

    def _logits(self, hidden: torch.Tensor, norm: nn.Module | None, tokens: Ints) -> Floats:
        """Logits of some tokens, (rows, tokens), from hidden states (rows, d)."""
        parameter = next(self._model.parameters())
        parts = []
        for rows in torch.split(hidden, HEAD_ROWS):
            each = rows.to(parameter.device, parameter.dtype)
            logits = logits_of(self._model, each if norm is None else norm(each))
            parts.append(logits[:, torch.from_numpy(tokens).to(logits.device)].cpu().numpy())
        return np.concatenate(parts)


def standing(logits: Floats, prompt: Ints, answer: Ints) -> npt.NDArray[np.float64]:
    """How answers stand among all answers of their relation after their prompts, (texts, KINDS).

    A logit is read in units of its answer (its mean over prompts taken off, divided by its deviation there), less the mean
    over answers: the `relative` score. `lead` is what it has before the best rival, `rank` log(1 + rivals above it).
    `matched` asks for more: prompts and answers are dealt out to each other so that every answer gets the same share of all
    prompts and every prompt one answer (Sinkhorn and Knopp 1967); it is the logarithm of the stated pair's share.
    `matched_units` is the same from relative scores.

    Args:
        logits: (prompts, answers), at least 2 x 2; prompt, answer: (texts,) row and column of each text.
    """
    spread = logits.std(axis=0)
    units = (logits - logits.mean(axis=0)) / np.where(spread > 0, spread, 1)
    relative = units - units.mean(axis=1, keepdims=True)
    own = relative[prompt, answer]
    best = np.sort(relative, axis=1)[:, -2:]
    rival = np.where(own >= best[prompt, 1], best[prompt, 0], best[prompt, 1])
    above = np.concatenate(
        [
            (relative[rows] > mine[:, None]).sum(axis=1)
            for rows, mine in zip(_parts(prompt), _parts(own), strict=True)
        ]
    )
    shares = (matched(logits), matched(SLOPE * relative))
    return np.column_stack(
        [own, own - rival, np.log1p(above), *(each[prompt, answer] for each in shares)]
    ).astype(np.float64)


def matched(scores: Floats) -> Floats:
    """Logarithm of the share of each pair once all answers, and all prompts, have equal shares, (prompts, answers)."""
    logs = scores.astype(np.float32)
    for _ in range(ROUNDS):
        for axis in (0, 1):
            top = logs.max(axis=axis, keepdims=True)
            logs = logs - (top + np.log(np.exp(logs - top).sum(axis=axis, keepdims=True)))
    return np.asarray(logs, dtype=np.float32)


def _shared(encoded: Sequence[Encoded], relation: Ints) -> Ints:
    """How many tokens all answers of each relation begin with; each keeps one of its own, (relations,)."""
    result = np.zeros(int(relation.max()) + 1, dtype=np.int64)
    for number in range(len(result)):
        answers = [
            encoded[row].ids[encoded[row].answer]
            for row in np.flatnonzero(relation == number).tolist()
        ]
        least = min(len(answer) for answer in answers) - 1
        while (
            result[number] < least and len({int(answer[result[number]]) for answer in answers}) == 1
        ):
            result[number] += 1
    return result


def _stored(values: torch.Tensor) -> npt.NDArray[np.floating[Any]]:
    return smallest_float(values.float().cpu().numpy())


def _parts(values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return np.array_split(values, -(-len(values) // MOST_PROMPTS))


@torch.inference_mode()
def final_norm(model: Any, like: Encoded) -> nn.Module | None:
    """The module that makes final hidden states of the last block's output; None if there is none that does it alone."""
    made: list[tuple[nn.Module, torch.Tensor]] = []
    last: list[torch.Tensor] = []

    def hook(module: nn.Module, given: Any, output: Any) -> None:
        taken = given[0] if given else None
        if (
            last
            and torch.is_tensor(taken)
            and torch.is_tensor(output)
            and taken.data_ptr() == last[-1].data_ptr()
        ):
            made.append((module, output))

    leaves = [each for each in models.backbone(model).modules() if not list(each.children())]
    handles = [
        models.blocks(model)[-1].register_forward_hook(
            lambda _module, _given, output: last.append(models.first_tensor(output))
        ),
        *(each.register_forward_hook(hook) for each in leaves),
    ]
    try:
        ids = torch.from_numpy(like.ids[None]).to(model.device)
        final = models.backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return next(
        (module for module, output in reversed(made) if output.data_ptr() == final.data_ptr()), None
    )


def read(path: Any, examples: int) -> States:
    """The states that a job wrote; see `States`.

    Raises:
        UserError: a file of other examples.
    """
    found = tables.read_npz(path)
    if (
        not {"prompt", "answer", "unembedding", "words"} <= set(found)
        or len(found["prompt"]) != examples
    ):
        raise UserError(
            f"{path} holds the prompts of other examples; expected those of {examples}: delete the data set's folder "
            "in examples/ and run again"
        )
    blocks = {
        int(name.removeprefix("block_")): each
        for name, each in found.items()
        if name.startswith("block_")
    }
    return States(blocks, found["words"], found["prompt"], found["unembedding"], found["answer"])


def write(stream: Any, states: States) -> None:
    """Write states to an open file, for `read`."""
    blocks: dict[str, Any] = {f"block_{block:02d}": each for block, each in states.blocks.items()}
    np.savez(
        stream,
        words=states.words,
        prompt=states.prompt,
        answer=states.answer,
        unembedding=states.unembedding,
        **blocks,
    )

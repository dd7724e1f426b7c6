"""Scores of each answer among the candidate answers: those of all examples of its relation.

At the last token of a prompt, the model assigns a probability to the first token of every
candidate. The scores compare the stated answer with the others and need no second forward pass.
They are computed from the model's output, and from the residual stream of an earlier block, read
with the model's final norm and unembedding (logit lens, nostalgebraist 2020). No label is read: the
candidates are the answers of the data set, true or not. Tokens with which all answers of a relation
begin, such as the space before a number, count as part of the prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ghosttrack.activations.example_tokens import Encoded, common_length
from ghosttrack.activations.packed_texts import Pack, head_rows, logits_of
from ghosttrack.activations.store import smallest_float
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.inputs.sites import site_modules
from ghosttrack.runtime import tables

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Relative depths of the blocks whose prompt states are kept. The logit lens reads the first of
# them: on smollm2-135m it does not separate true from false answers up to three quarters of the
# depth, and does so from four fifths on.
DEPTHS = (0.8, 0.87, 0.93, 0.97)
# Prompts compared in one table. A relation with more is split: every k-th prompt per table.
MAX_PROMPTS = 2048
MIN_PROMPTS = MIN_ANSWERS = 2
# Iterations of Sinkhorn and Knopp (1967). The AUROC on smollm2-135m is the same after 20 and 300.
ITERATIONS = 30
# Multiplied by this, z-scored logits are about as sharp as log-odds.
SLOPE = 2.0
SCORES = ("z_logit", "lead", "rank", "sinkhorn", "sinkhorn_z")
# Column prefixes: scores from the model's output, scores from the logit lens.
FINAL, LENS = "final", "lens"


class States(NamedTuple):
    """Inputs of the bilinear probe; float16, or float32 where float16 overflows.

    blocks: by block, (prompts, d_model), residual stream at the last token of each prompt.
    words: (prompts, d), mean token embedding of the prompt's own tokens.
    prompt: (examples,) row of each example in both.
    unembedding: (answers, d), rows of the unembedding for the first tokens of the answers.
    answer: (examples,) row of each example in `unembedding`.
    """

    blocks: Mapping[int, npt.NDArray[np.floating[Any]]]
    words: npt.NDArray[np.floating[Any]]
    prompt: Ints
    unembedding: npt.NDArray[np.floating[Any]]
    answer: Ints


def read_blocks(count: int) -> list[int]:
    """Blocks, of `count`, whose prompt states are kept; never the last, which is the output."""
    return sorted({min(round(depth * count), count - 1) - 1 for depth in DEPTHS} - {-1})


class Candidates:
    """Collects states at the last prompt tokens and scores the answers among their candidates.

    Args:
        model: causal language model.
        encoded: the examples as tokens.
        relations: relation of each example, (examples,).
    """

    def __init__(self, model: Any, encoded: Sequence[Encoded], relations: Sequence[str]) -> None:
        self._model = model
        self._encoded = encoded
        self.blocks = read_blocks(len(models.blocks(model)))
        self._relation: Ints = pd.factorize(np.array(relations, dtype=object))[0].astype(np.int64)
        shared = _shared_answer_tokens(encoded, self._relation)
        # Position in `ids` of the first answer token that differs within the relation.
        self._at = [
            int(one.answer[0]) + int(shared[relation])
            for one, relation in zip(encoded, self._relation, strict=True)
        ]
        prompts = [
            (relation, one.prefix.tobytes(), one.ids[:at].tobytes())
            for relation, one, at in zip(relations, encoded, self._at, strict=True)
        ]
        self._first = np.array(
            [one.ids[at] for one, at in zip(encoded, self._at, strict=True)], dtype=np.int64
        )
        self._prompt: Ints = pd.MultiIndex.from_tuples(prompts).factorize()[0].astype(np.int64)
        width = model.config.get_text_config().hidden_size
        self._states = torch.zeros(len(self.blocks), int(self._prompt.max()) + 1, width)
        self._final: torch.Tensor | None = None

    def modules(self) -> list[nn.Module]:
        """The modules whose outputs `take` expects, in the order of `blocks`."""
        return site_modules(self._model, self.blocks, "resid_post") if self.blocks else []

    def take(
        self, pack: Pack, texts: Sequence[int], final: torch.Tensor, outputs: Sequence[torch.Tensor]
    ) -> None:
        """Store the states at the last prompt tokens of some texts of a pack, all of them examples.

        Args:
            final: (length, d) final hidden states.
            outputs: of each module, (1, length, d_model).
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
        for states, output in zip(self._states, outputs, strict=True):
            states[rows] = output[0, places].float().cpu()

    def states(self) -> States:
        """The collected states."""
        first, answer = np.unique(self._first, return_inverse=True)
        head = self._model.get_output_embeddings().weight.detach()[torch.from_numpy(first)]
        blocks = {
            block: _stored(states) for block, states in zip(self.blocks, self._states, strict=True)
        }
        return States(
            blocks, _stored(self._words()), self._prompt, _stored(head), answer.astype(np.int64)
        )

    def _words(self) -> torch.Tensor:
        """Mean token embedding of each prompt's own tokens; of its last token if it has none."""
        embed = self._model.get_input_embeddings()
        means = []
        with torch.inference_mode():
            for number in np.unique(self._prompt, return_index=True)[1]:
                one, at = self._encoded[number], self._at[number]
                ids = np.concatenate([one.prefix, one.ids[:at]])
                own = torch.from_numpy(ids[min(one.lead, len(ids) - 1) :])
                means.append(embed(own.to(self._model.device)).float().mean(dim=0).cpu())
        return torch.stack(means)

    @torch.inference_mode()
    def table(self) -> pd.DataFrame:
        """Scores of all examples, (examples, 2 x SCORES): of the output, then of the logit lens.

        NaN where a relation has fewer than two prompts or two answers that begin differently. The
        lens columns are also NaN where no single module maps the last block's output to the final
        hidden states (see `final_norm`).
        """
        assert self._final is not None, "take was called"
        columns = self._scores(FINAL, self._final, None)
        norm = final_norm(self._model, self._encoded[0]) if self.blocks else None
        if norm is None:
            return columns.assign(**{f"{LENS}_{score}": np.nan for score in SCORES})
        return pd.concat([columns, self._scores(LENS, self._states[0], norm)], axis=1)

    def _scores(self, prefix: str, hidden: torch.Tensor, norm: nn.Module | None) -> pd.DataFrame:
        result = np.full((len(self._first), len(SCORES)), np.nan)
        for relation in range(int(self._relation.max()) + 1):
            examples = np.flatnonzero(self._relation == relation)
            prompts = np.unique(self._prompt[examples])
            parts = -(-len(prompts) // MAX_PROMPTS)
            for part in range(parts):
                shown = prompts[part::parts]
                rows = examples[np.isin(self._prompt[examples], shown)]
                answers, answer = np.unique(self._first[rows], return_inverse=True)
                if len(shown) >= MIN_PROMPTS and len(answers) >= MIN_ANSWERS:
                    logits = self._logits(hidden[torch.from_numpy(shown)], norm, answers)
                    result[rows] = candidate_scores(
                        logits, np.searchsorted(shown, self._prompt[rows]), answer
                    )
        return pd.DataFrame(result, columns=[f"{prefix}_{score}" for score in SCORES])

    def _logits(self, hidden: torch.Tensor, norm: nn.Module | None, tokens: Ints) -> Floats:
        """Logits of some tokens, (rows, tokens), from hidden states (rows, d)."""
        parameter = next(self._model.parameters())
        parts = []
        for rows in torch.split(hidden, head_rows(self._model)):
            states = rows.to(parameter.device, parameter.dtype)
            logits = logits_of(self._model, states if norm is None else norm(states))
            parts.append(logits[:, torch.from_numpy(tokens).to(logits.device)].cpu().numpy())
        return np.concatenate(parts)


def candidate_scores(logits: Floats, prompt: Ints, answer: Ints) -> npt.NDArray[np.float64]:
    """Scores of stated answers among all candidates of their relation, (texts, SCORES).

    z_logit: the logit, standardised over the prompts of its answer, minus the mean of the
        standardised logits over the answers of its prompt.
    lead: z_logit minus that of the best other candidate.
    rank: log(1 + number of candidates with a larger z_logit).
    sinkhorn: Sinkhorn assignment score, the logarithm of the pair's entry after `sinkhorn` of the
        logits.
    sinkhorn_z: the same from z-scored logits.

    Args:
        logits: (prompts, answers), at least 2 x 2.
        prompt, answer: (texts,) row and column of each text.
    """
    deviation = logits.std(axis=0)
    standardised = (logits - logits.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    z_logits = standardised - standardised.mean(axis=1, keepdims=True)
    stated = z_logits[prompt, answer]
    best = np.sort(z_logits, axis=1)[:, -2:]
    other = np.where(stated >= best[prompt, 1], best[prompt, 0], best[prompt, 1])
    above = np.concatenate(
        [
            (z_logits[rows] > values[:, None]).sum(axis=1)
            for rows, values in zip(_parts(prompt), _parts(stated), strict=True)
        ]
    )
    assigned = (sinkhorn(logits), sinkhorn(SLOPE * z_logits))
    return np.column_stack(
        [stated, stated - other, np.log1p(above), *(table[prompt, answer] for table in assigned)]
    ).astype(np.float64)


def sinkhorn(scores: Floats) -> Floats:
    """Sinkhorn normalisation of exp(scores), (prompts, answers), as logarithms.

    Rows and columns are normalised in turn (Sinkhorn and Knopp 1967), until all rows sum to 1 and
    all columns have the same sum. So an answer that is likely after every prompt gains nothing.
    """
    logs = scores.astype(np.float32)
    for _ in range(ITERATIONS):
        for axis in (0, 1):
            top = logs.max(axis=axis, keepdims=True)
            logs = logs - (top + np.log(np.exp(logs - top).sum(axis=axis, keepdims=True)))
    return np.asarray(logs, dtype=np.float32)


def _shared_answer_tokens(encoded: Sequence[Encoded], relation: Ints) -> Ints:
    """Number of tokens shared at the start of all answers of a relation, less than any answer."""
    result = np.zeros(int(relation.max()) + 1, dtype=np.int64)
    for number in range(len(result)):
        answers = [
            encoded[row].ids[encoded[row].answer]
            for row in np.flatnonzero(relation == number).tolist()
        ]
        result[number] = min(common_length(answers), min(map(len, answers)) - 1)
    return result


def _stored(values: torch.Tensor) -> npt.NDArray[np.floating[Any]]:
    return smallest_float(values.float().cpu().numpy())


def _parts(values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return np.array_split(values, -(-len(values) // MAX_PROMPTS))


@torch.inference_mode()
def final_norm(model: Any, example: Encoded) -> nn.Module | None:
    """The module that alone maps the last block's output to the final hidden states, or None.

    During a forward pass over `example`, a module is recognised by the memory addresses of its
    input and output.
    """
    calls: list[tuple[nn.Module, torch.Tensor]] = []
    last: list[torch.Tensor] = []

    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        taken = arguments[0] if arguments else None
        if (
            last
            and torch.is_tensor(taken)
            and torch.is_tensor(output)
            and taken.data_ptr() == last[-1].data_ptr()
        ):
            calls.append((module, output))

    leaves = [module for module in models.backbone(model).modules() if not list(module.children())]
    handles = [
        models.blocks(model)[-1].register_forward_hook(
            lambda _module, _arguments, output: last.append(models.first_tensor(output))
        ),
        *(leaf.register_forward_hook(hook) for leaf in leaves),
    ]
    try:
        ids = torch.from_numpy(example.ids[None]).to(model.device)
        final = models.backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return next(
        (module for module, output in reversed(calls) if output.data_ptr() == final.data_ptr()),
        None,
    )


def read(path: Any, examples: int) -> States:
    """Read the states that `write` wrote.

    Raises:
        UserError: the file belongs to other examples.
    """
    arrays = tables.read_npz(path)
    if (
        not {"prompt", "answer", "unembedding", "words"} <= set(arrays)
        or len(arrays["prompt"]) != examples
    ):
        raise UserError(
            f"{path} holds the prompts of other examples; expected those of {examples}: delete the "
            "data set's folder in examples/ and run again"
        )
    blocks = {
        int(name.removeprefix("block_")): values
        for name, values in arrays.items()
        if name.startswith("block_")
    }
    return States(
        blocks, arrays["words"], arrays["prompt"], arrays["unembedding"], arrays["answer"]
    )


def write(stream: Any, states: States) -> None:
    """Write states to an open file, for `read`."""
    blocks: dict[str, Any] = {
        f"block_{block:02d}": values for block, values in states.blocks.items()
    }
    np.savez(
        stream,
        words=states.words,
        prompt=states.prompt,
        answer=states.answer,
        unembedding=states.unembedding,
        **blocks,
    )

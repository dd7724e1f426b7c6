"""Read whole statements: pooled activations of some layers, and statistics of their tokens.

All tokens of a text count, its full stop included. Activations are pooled in three ways, because the
false part of a statement can stand anywhere and the model can notice it late. Every text is read
behind the same few true statements of several kinds, which show the model what kind of text it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ghosttrack.activations import example_extraction as reading
from ghosttrack.activations import example_tokens
from ghosttrack.activations.hooks import captured
from ghosttrack.activations.layout import why_not_finite
from ghosttrack.activations.packed_texts import PackedReader, TokenStatistics
from ghosttrack.activations.pooled_statements import (
    OUTPUTS,
    POOLS,
    PooledTexts,
    StatementTokens,
    TokenScore,
)
from ghosttrack.errors import UserError
from ghosttrack.inputs.segmentation import sentences, words
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime.progress import Progress

# At most so many of the run's layers are read, evenly spaced from the first on.
LAYERS = 3
# What every text is read behind. Against reading alone, it raised the AUROC on left-out kinds from .59
# to .61 with 1,700 statements and SmolLM2-135M.
CONTEXT = """The Eiffel Tower is in Paris.
A dog is an animal.
Two plus three is five.
The capital of Japan is Tokyo.
Ice is not hot.
Gold is a metal.
In Brazil, people speak Portuguese.
A mouse is smaller than a horse.
Spain is not in Africa.
The chemical symbol of oxygen is O.
"""
# Marks that end a statement; other texts get a full stop, as all training statements have one.
_QUESTION_MARKS = "?\uff1f\u061f"
_END_MARKS = f".!\u3002\uff01\u0964\u2026{_QUESTION_MARKS}"
# What may follow the mark.
_CLOSING = "\"'\u201d\u2019)]"
# As in the stores: a token counts as an attention sink from this multiple of the median norm on.
_MASSIVE = 10.0


def as_statement(text: str) -> str:
    """The text without white space at its ends, with a full stop unless an end mark is there."""
    text = text.strip()
    return text if text.rstrip(_CLOSING).endswith(tuple(_END_MARKS)) else f"{text}."


def is_statement(text: str) -> bool:
    """Whether a sentence can state anything: it has two words or more, and no question mark at the end."""
    asked = text.strip().rstrip(_CLOSING).endswith(tuple(_QUESTION_MARKS))
    return not asked and len(words(text)) > 1


def by_sentence(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per sentence of every text, as `score` judges texts; equal `id`: the same text.

    `text` is the sentence. The other columns are those of the whole text.
    """
    parts = [[text[each.start : each.stop] for each in sentences(text)] for text in frame["text"]]
    return frame.assign(text=parts).explode("text", ignore_index=True)


class StatementReader:
    """Reads every text behind CONTEXT, whose KV cache it keeps.

    Args:
        model: causal language model in evaluation mode.
        layers: ascending, 0-based.
        limit: longest input of the model in tokens.
        batch: texts per forward pass, approximately; changes only memory and rounding noise.
        packed: longest packed sequence in tokens, from `Limits`.
        token_score: None: tokens are not scored.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layers: Sequence[int],
        *,
        site: Site,
        limit: int,
        batch: int,
        packed: int,
        token_score: TokenScore | None = None,
    ) -> None:
        self._model, self._tokenizer, self._limit = model, tokenizer, limit
        self._modules = site_modules(model, list(layers), site)
        self._batch, self._token_score = batch, token_score
        self._context = fitting_context(tokenizer, limit)
        self._reader = PackedReader(model, packed)

    def read(
        self, texts: Sequence[str], dataset: str = "statements"
    ) -> tuple[PooledTexts, list[StatementTokens]]:
        """Pooled texts, and the tokens of every text; no tokens without a `token_score`.

        Args:
            dataset: named in errors.
        Raises:
            UserError: a text is too long for the model, or activations are not finite.
        """
        encoded = self._encoded(texts, dataset)
        starts = reading.row_starts(encoded)
        scores = reading.TextScores.empty(encoded)
        width = self._model.config.get_text_config().hidden_size
        states = np.empty((len(texts), len(self._modules), len(POOLS), width), dtype=np.float32)
        outputs = np.empty((len(texts), len(OUTPUTS)))
        tokens: dict[int, StatementTokens] = {}
        progress = Progress("reading statements", len(texts), "texts")
        with captured(self._modules, stop=False) as hidden, torch.inference_mode():
            self._reader.cache_prefixes(encoded)
            for pack in self._reader.packs(encoded, range(len(encoded)), self._batch):
                numbers = range(len(pack.numbers))
                _, places = reading.read_rows(encoded, pack, numbers, starts)
                final = self._reader.final(pack)
                reading.score_texts(self._reader, encoded, pack, numbers, final, scores)
                values = [layer[0, places].float().cpu() for layer in hidden]
                at = 0
                for number in pack.numbers:
                    one = encoded[number]
                    x = [layer[at : at + len(one.read)] for layer in values]
                    at += len(one.read)
                    rows = slice(int(starts[number]), int(starts[number + 1]))
                    statistics = TokenStatistics._make(column[rows] for column in scores.tokens)
                    outputs[number] = output_row(statistics)
                    for index, layer in enumerate(x):
                        states[number, index] = pool(layer)
                    if self._token_score:
                        tokens[number] = StatementTokens(
                            one.ranges,
                            -statistics.logprob.astype(np.float64),
                            token_scores(x, self._token_score),
                        )
                progress.advance(len(pack.numbers))
        finite = np.isfinite(states).all(axis=(1, 2, 3))
        if not finite.all():
            raise UserError(
                f"{dataset}, text {int(np.argmin(finite)) + 1}: an activation is NaN or infinite, "
                "expected finite values: "
                + why_not_finite(self._model.dtype == torch.float16, type(self._model).__name__)
            )
        return PooledTexts(states, outputs), [tokens[number] for number in sorted(tokens)]

    def _encoded(self, texts: Sequence[str], dataset: str) -> list[example_tokens.Encoded]:
        """Every statement as tokens behind CONTEXT, all of which are read."""
        frame = pd.DataFrame(
            {"id": range(1, len(texts) + 1), "text": [as_statement(text) for text in texts]}
        )
        frame = frame.assign(
            answer_start=0, answer_end=frame["text"].str.len(), relation="", mode="given"
        )
        contexts = [self._context] * len(frame)
        return example_tokens.encode(
            frame, self._tokenizer, self._limit, dataset, contexts, positions="all"
        )


def fitting_context(tokenizer: Any, limit: int) -> str:
    """The first lines of CONTEXT that take at most half of the model's `limit` in tokens."""
    lines = CONTEXT.splitlines(keepends=True)
    while lines and len(tokenizer("".join(lines), verbose=False)["input_ids"]) > limit // 2:
        lines.pop()
    return "".join(lines)


def chosen_layers(layers: Sequence[int]) -> list[int]:
    """The layers of a run, ascending, that are read: LAYERS of them, evenly spaced."""
    step = max(-(-len(layers) // LAYERS), 1)
    return list(layers[::step])


def pool(x: torch.Tensor) -> NDArray[np.float32]:
    """Activations of one text in one layer, (tokens, d_model), pooled to (POOLS, d_model).

    The mean leaves attention sinks out.
    """
    mean = x[_included(x)].mean(dim=0)
    return np.asarray(torch.stack([mean, x[-1], x[max(len(x) - 2, 0)]]).numpy())


def token_scores(layers: Sequence[torch.Tensor], by: TokenScore) -> NDArray[np.float64]:
    """Scores of the tokens of one text, (tokens,); a layer ignores its attention sinks.

    Args:
        layers: activations of each layer, (tokens, d_model).
    """
    result = np.full(len(layers[0]), by.intercept)
    for x, weight, shift in zip(layers, by.weight, by.shift, strict=True):
        included = _included(x).double()
        share = included * len(x) / included.sum()
        result += (share * (x.double() @ torch.from_numpy(weight) - shift)).numpy()
    return result


def _included(x: torch.Tensor) -> torch.Tensor:
    """Which tokens of one text are no attention sinks (ten times the median norm), (tokens,) bool."""
    norm = torch.linalg.vector_norm(x, dim=1)
    return torch.le(norm, _MASSIVE * norm.median())


def output_row(tokens: TokenStatistics) -> NDArray[np.float64]:
    """The OUTPUTS of one text from the statistics of its tokens, in nats.

    excess: surprise beyond the entropy of the prediction, which is the expected surprise; late: the
        largest in the second half of the text; end: of the token before the last; rank: log(1 + rank).
    """
    surprise = -tokens.logprob.astype(np.float64)
    excess = surprise - tokens.entropy
    rank = np.log1p(tokens.rank.astype(np.float64))
    late, end = slice(len(surprise) // 2, None), max(len(surprise) - 2, 0)
    ordered = np.sort(surprise)
    return np.array(
        [
            surprise.mean(),
            ordered[-1],
            ordered[-2] if len(ordered) > 1 else ordered[-1],
            surprise[late].max(),
            surprise[end],
            tokens.entropy.mean(),
            excess.mean(),
            excess.max(),
            excess[late].max(),
            excess[end],
            rank.mean(),
            rank.max(),
            rank[end],
            tokens.margin.mean(),
            float(np.argmax(surprise)) / len(surprise),
            np.log(len(surprise)),
        ]
    )

"""Lookback ratios: how much each attention head attends to what precedes an answer.

The lookback ratio of a head at an answer token is c / (c + a). c is the mean attention weight on
the tokens before the answer, a the mean weight on the answer's tokens up to this one (Lookback Lens,
Chuang et al. 2024). The weights are computed once more from the queries and keys of the forward
pass, for answer tokens alone, so that the pass itself keeps its fast attention.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.packed_texts import Pack
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.runtime import files, tables

# Attention weights that are computed at once: 4 million x 4 bytes are 16 MB, in a few copies.
WEIGHTS = 4_000_000


class Ratios(NamedTuple):
    """Lookback ratios of the answer tokens of a data set, in the order of its examples.

    ratio: (tokens, columns) float16; a column is a head. No column where the library's attention
        functions do not compute the attention of the model.
    layer, head: (columns,), from 0.
    """

    ratio: npt.NDArray[np.float16]
    layer: npt.NDArray[np.int64]
    head: npt.NDArray[np.int64]


class _Text(NamedTuple):
    """A text of the pack that is read next.

    rows: answer tokens among the queries. context, answer: among the keys. at: first row in the
    result.
    """

    rows: torch.Tensor
    context: torch.Tensor
    answer: torch.Tensor
    at: int


class Lookback:
    """Collects the lookback ratios of examples while a model reads them.

    Args:
        model: causal language model.
        encoded: the examples as tokens.
    """

    def __init__(self, model: Any, encoded: Sequence[Encoded]) -> None:
        self._model = model
        self._encoded = encoded
        counts = [len(one.answer) for one in encoded]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._texts: list[_Text] = []
        self._shape = (0, 0)
        self._layer = 0  # the block that runs
        self._by_layer: dict[int, npt.NDArray[np.float16]] = {}

    @property
    def tokens(self) -> int:
        """Number of the examples' answer tokens."""
        return int(self._starts[-1])

    def expect(self, pack: Pack, texts: Sequence[int]) -> None:
        """Say which texts of a pack the model reads next; `texts` are indices in the pack."""
        before = len(pack.prefix)
        self._shape = (len(pack.ids), before + len(pack.ids))
        self._texts = []
        for text in texts:
            number, places = pack.numbers[text], pack.places[text]
            answer = self._encoded[number].answer
            first = int(places[0]) if pack.visible is None else 0
            context = np.concatenate([np.arange(before + first), before + places[: int(answer[0])]])
            self._texts.append(
                _Text(
                    torch.from_numpy(places[answer]),
                    torch.from_numpy(context),
                    torch.from_numpy(before + places[answer]),
                    int(self._starts[number]),
                )
            )

    def forget(self) -> None:
        """Say that the expected texts were read: other passes of the same length give no ratios."""
        self._texts = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, forward passes on expected packs give their ratios."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        name = self._model.config.get_text_config()._attn_implementation or "eager"
        usual = ALL_ATTENTION_FUNCTIONS.get(name)

        def attend(module: Any, query: Any, key: Any, *rest: Any, **options: Any) -> Any:
            self._take(query, key, rest[1] if len(rest) > 1 else None, options)
            return (usual or _eager(module))(module, query, key, *rest, **options)

        # The number in an attention module is missing or another one where blocks share a module
        # (Zamba), so the block tells the layer.
        handles = [
            block.register_forward_pre_hook(lambda *_, layer=layer: self._enter(layer))
            for layer, block in enumerate(models.blocks(self._model))
        ]
        ALL_ATTENTION_FUNCTIONS[name] = attend
        try:
            yield
        finally:
            del ALL_ATTENTION_FUNCTIONS[name]
            for handle in handles:
                handle.remove()

    def _enter(self, layer: int) -> None:
        self._layer = layer

    def ratios(self) -> Ratios:
        """The ratios of all examples."""
        layers = sorted(self._by_layer)
        if not layers:
            none = np.empty(0, dtype=np.int64)
            return Ratios(np.empty((self.tokens, 0), dtype=np.float16), none, none)
        heads = [self._by_layer[layer].shape[1] for layer in layers]
        return Ratios(
            np.concatenate([self._by_layer[layer] for layer in layers], axis=1),
            np.repeat(layers, heads),
            np.concatenate([np.arange(count) for count in heads]),
        )

    def _take(
        self, query: torch.Tensor, key: torch.Tensor, mask: Any, options: Mapping[str, Any]
    ) -> None:
        """The ratios of one layer; (1, heads, length, head_dim) queries, and keys after a cache."""
        # The pass that fills a cache of contexts has other lengths.
        if (query.shape[2], key.shape[2]) != self._shape or query.shape[0] != 1:
            return
        layer, heads = self._layer, int(query.shape[1])
        if layer not in self._by_layer:
            self._by_layer[layer] = np.zeros((self.tokens, heads), dtype=np.float16)
        mask = options.get("attention_mask", mask)
        for text in self._texts:
            keys = torch.cat([text.context, text.answer])
            step = max(1, WEIGHTS // (heads * len(keys)))
            for start in range(0, len(text.rows), step):
                rows = text.rows[start : start + step]
                # (heads, rows, keys)
                scores = _scores(query[0], key[0], rows, keys, mask, options)
                found = _ratio(scores, len(text.context), start)
                self._by_layer[layer][text.at + start : text.at + start + len(rows)] = (
                    found.T.cpu().numpy()
                )


def _scores(
    query: torch.Tensor,
    key: torch.Tensor,
    rows: torch.Tensor,
    keys: torch.Tensor,
    mask: Any,
    options: Any,
) -> torch.Tensor:
    """Attention scores before the softmax, (heads, rows, keys), in float32."""
    rows, keys = rows.to(query.device), keys.to(query.device)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    chosen = query[:, rows].float()  # (heads, rows, head_dim)
    seen = key[:, keys].float().repeat_interleave(len(query) // len(key), dim=0)
    scores: torch.Tensor = chosen @ seen.transpose(1, 2) * scale
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    if options.get("position_bias") is not None:
        scores = scores + _part(options["position_bias"], rows, keys)
    if mask is not None:
        part = _part(mask, rows, keys)
        if part.dtype == torch.bool:
            return scores.masked_fill(~part, -math.inf)
        scores = scores + part
    return scores


def _part(mask: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Part of a mask (1, heads or 1, length, keys), (heads or 1, rows, keys)."""
    return mask[0][:, rows][:, :, keys]


def _ratio(scores: torch.Tensor, context: int, start: int) -> torch.Tensor:
    """Lookback ratios, (heads, rows), of answer tokens from the answer's token `start` on.

    Args:
        scores: (heads, rows, keys); the keys are those of `context` tokens, then of the answer.
    """
    own = scores[:, :, context:]
    later = torch.arange(own.shape[2], device=own.device)
    index = start + torch.arange(own.shape[1], device=own.device)
    own = own.masked_fill(later > index[:, None], -math.inf)
    before = torch.logsumexp(scores[:, :, :context], dim=2) - math.log(max(context, 1))
    since = torch.logsumexp(own, dim=2) - torch.log1p(index.float())
    return torch.sigmoid(before - since)


def _eager(module: Any) -> Callable[..., Any]:
    """The attention function of a model's own file, for models without a faster one."""
    found: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
    return found


def write(path: Path, found: Ratios) -> None:
    """Write the arrays of `Ratios`."""
    arrays: dict[str, Any] = found._asdict()
    with files.atomic_write(path, "wb") as stream:
        np.savez(stream, **arrays)


def read(path: Path, tokens: int) -> Ratios:
    """Read what `write` wrote.

    Raises:
        UserError: the file belongs to other texts; `tokens` is the number of their answer tokens.
    """
    arrays = tables.read_npz(path)
    if not set(Ratios._fields) <= set(arrays) or len(arrays["ratio"]) != tokens:
        raise UserError(
            f"{path} holds the attention of other answers; expected {tokens} answer tokens: delete "
            "the data set's folder in examples/ and run again"
        )
    return Ratios(*(arrays[name] for name in Ratios._fields))

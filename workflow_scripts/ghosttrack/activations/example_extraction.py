"""Extraction from examples: activations of their answer tokens, or others, and token statistics."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ghosttrack.activations.candidates import Candidates
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.extraction import ModelIdentity, StoreFiles
from ghosttrack.activations.hooks import captured
from ghosttrack.activations.lookback import Lookback
from ghosttrack.activations.packed_texts import Pack, PackedReader, TokenStatistics
from ghosttrack.activations.pmi_baseline import BaselineMeans, PmiBaseline
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime.progress import Progress

# Rows are put in order in memory within windows of this many batches of examples, or this many
# rows: 4,096 rows x 25 stores x 1,024 x 4 bytes are 400 MB.
WINDOW_BATCHES = 8
WINDOW_ROWS = 4096


class ExampleTables(NamedTuple):
    """`tokens`: one row per stored activation row; `outputs`: one row per example."""

    tokens: pd.DataFrame
    outputs: pd.DataFrame


class TextScores(NamedTuple):
    """What a model's output distribution says about texts.

    tokens: statistics of the scored tokens, in the order of the texts.
    starts: (texts + 1,) index of each text's first scored token.
    text: (texts,) log-probability of all tokens of a text after its first in `ids`, in nats.
    """

    tokens: TokenStatistics
    starts: npt.NDArray[np.int64]
    text: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, encoded: Sequence[Encoded]) -> "TextScores":
        """Uninitialised scores of these texts."""
        starts = _starts([one.scored for one in encoded])
        arrays = (np.empty(int(starts[-1]), dtype=kind) for kind in ("f4", "f4", "f4", "i4"))
        return cls(TokenStatistics(*arrays), starts, np.empty(len(encoded)))

    def of_read(self, encoded: Sequence[Encoded]) -> TokenStatistics:
        """Statistics of the tokens whose activations are stored."""
        return self._of(encoded, [one.read for one in encoded])

    def of_answer(self, encoded: Sequence[Encoded]) -> TokenStatistics:
        """Statistics of the answer tokens."""
        return self._of(encoded, [one.answer for one in encoded])

    def _of(
        self, encoded: Sequence[Encoded], positions: Sequence[npt.NDArray[np.int64]]
    ) -> TokenStatistics:
        chosen = np.concatenate(
            [
                start + np.searchsorted(one.scored, wanted)
                for start, one, wanted in zip(self.starts[:-1], encoded, positions, strict=True)
            ]
        )
        return TokenStatistics(*(values[chosen] for values in self.tokens))


def extract_examples(
    model: Any,
    identity: ModelIdentity,
    encoded: Sequence[Encoded],
    layers: Sequence[int],
    targets: Sequence[StoreFiles],
    embedding: StoreFiles | None,
    *,
    site: Site,
    batch: int,
    packed: int,
    cached: int = 0,
    scales: Sequence[int] | None = None,
    pmi_baseline: PmiBaseline | None = None,
    candidates: Candidates | None = None,
    lookback: Lookback | None = None,
) -> ExampleTables:
    """Write the activations of all examples: one store per layer, and one of the token embedding.

    Args:
        model: causal language model in evaluation mode.
        identity: kept in the stores.
        encoded: the examples; rows are stored in their order.
        layers: ascending, 0-based; `targets` in the same order. Without layers and embedding only
            the tables are made.
        embedding: store of the token-embedding output.
        site: which output of each block.
        batch: examples per forward pass, approximately; changes only memory and rounding noise.
        packed: longest packed sequence in tokens, from `Limits`.
        cached: longest text after the KV cache of its prefix in tokens, as in `PackedReader`.
        scales: of the stores of the embedding and of the layers, from `limits.scales`; None: 1.
        pmi_baseline: receives the answers after other prompts, which are read in the same passes.
        candidates: receives the states at the end of the examples' prompts.
        lookback: receives the attention of the examples' answer tokens.
    Returns:
        Tables without text and id columns, which the caller adds.
    Raises:
        UserError: no such layers, or activations that are not finite or beyond the range of the
            stores.
    """
    starts = row_starts(encoded)
    texts = [*encoded, *(pmi_baseline.encoded if pmi_baseline else ())]
    scores = TextScores.empty(encoded)
    embeddings = [model.get_input_embeddings()] if embedding else []
    stored = [*embeddings, *(site_modules(model, layers, site) if layers else ())]
    modules = [*stored, *(candidates.modules() if candidates else ())]
    digest, width = _sha256(encoded), model.config.get_text_config().hidden_size
    headers: list[tuple[StoreFiles, int | None, str, int]] = [
        *([(embedding, None, "embedding", embeddings[0].embedding_dim)] if embedding else ()),
        *((target, layer, site, width) for target, layer in zip(targets, layers, strict=True)),
    ]
    scales = scales or [1] * len(headers)
    progress = Progress("extracting", len(texts), "texts")
    with ExitStack() as stack, torch.inference_mode():
        reader = PackedReader(model, packed, cached)
        writers = [
            stack.enter_context(
                StoreWriter(
                    *files,
                    Header(
                        identity.model,
                        identity.weights_sha256,
                        layer,
                        name,
                        None,
                        digest,
                        model_precision=identity.precision,
                        scale=scale,
                    ),
                    rows=int(starts[-1]),
                    d_model=d_model,
                )
            )
            for (files, layer, name, d_model), scale in zip(headers, scales, strict=True)
        ]
        outputs = stack.enter_context(captured(modules, stop=False))
        if lookback:
            stack.enter_context(lookback.watching())
        for window, others in _windows(texts, len(encoded), batch):
            first, end = int(starts[window[0]]), int(starts[window[-1] + 1])
            blocks = [torch.empty(end - first, d_model) for *_, d_model in headers]
            for pack in reader.packs(texts, [*window, *others], batch):
                own = [index for index, number in enumerate(pack.numbers) if number < len(encoded)]
                if lookback:
                    lookback.expect(pack, own)
                final = reader.final(pack)
                if lookback:
                    lookback.forget()
                if own:
                    rows, places = read_rows(encoded, pack, own, starts)
                    for block, output in zip(blocks, outputs[: len(stored)], strict=True):
                        block[rows - first] = output[0, places].float().cpu()
                    score_texts(reader, encoded, pack, own, final, scores)
                    if candidates:
                        candidates.take(pack, own, final, outputs[len(stored) :])
                if pmi_baseline and len(own) < len(pack.numbers):
                    rest = [
                        index for index, number in enumerate(pack.numbers) if number >= len(encoded)
                    ]
                    of_layers = outputs[len(embeddings) : len(stored)]
                    pmi_baseline.take(reader, pack, rest, len(encoded), final, of_layers)
                progress.advance(len(pack.numbers))
            for writer, block, scale in zip(writers, blocks, scales, strict=True):
                writer.append(to_block(block, scale=scale))
    return ExampleTables(_tokens(encoded, scores.of_read(encoded)), output_table(encoded, scores))


def compared_outputs(
    outputs: pd.DataFrame, examples: pd.DataFrame, means: BaselineMeans, compared: Candidates
) -> pd.DataFrame:
    """The table `outputs` with ids, PMI, and the comparison with the other candidate answers."""
    outputs.insert(0, "id", examples["id"].to_numpy())
    for kind in ("sum", "mean", "first"):
        outputs[f"pmi_{kind}"] = outputs[f"logprob_{kind}"] - getattr(means, f"logprob_{kind}")
    outputs["pmi_prompts"] = means.prompts
    return pd.concat([outputs, compared.table()], axis=1)


def row_starts(encoded: Sequence[Encoded]) -> npt.NDArray[np.int64]:
    """First stored row of each text, then the number of all rows, (texts + 1,)."""
    return _starts([one.read for one in encoded])


def _starts(positions: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(one) for one in positions])]).astype(np.int64)


def _windows(
    texts: Sequence[Encoded], examples: int, batch: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Consecutive examples, and the other texts that share a prompt with them.

    A window holds up to WINDOW_BATCHES batches or about WINDOW_ROWS rows. The texts after the first
    `examples` come with the first window that contains their prompt.
    """
    waiting: dict[tuple[bytes, bytes], list[int]] = {}
    for number in range(examples, len(texts)):
        waiting.setdefault(_prompt(texts[number]), []).append(number)
    window: list[int] = []
    rows = 0
    for number in range(examples):
        window.append(number)
        rows += len(texts[number].read)
        if len(window) == WINDOW_BATCHES * batch or rows >= WINDOW_ROWS or number == examples - 1:
            yield (
                window,
                [other for one in window for other in waiting.pop(_prompt(texts[one]), ())],
            )
            window, rows = [], 0


def _prompt(one: Encoded) -> tuple[bytes, bytes]:
    return one.prefix.tobytes(), one.ids[: one.answer[0]].tobytes()


def read_rows(
    encoded: Sequence[Encoded], pack: Pack, texts: Sequence[int], starts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], torch.Tensor]:
    """Store rows of some texts of a pack, and their places in the packed sequence, (rows,)."""
    numbers = [pack.numbers[text] for text in texts]
    rows = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in numbers])
    places = [
        pack.places[text][encoded[number].read] for text, number in zip(texts, numbers, strict=True)
    ]
    return rows, torch.from_numpy(np.concatenate(places))


def score_texts(
    reader: PackedReader,
    encoded: Sequence[Encoded],
    pack: Pack,
    texts: Sequence[int],
    final: torch.Tensor,
    scores: TextScores,
) -> None:
    """Fill in `scores` for some texts of a pack, from its final hidden states (length, d_model)."""
    numbers = [pack.numbers[text] for text in texts]
    lengths = np.array([len(encoded[number].ids) - 1 for number in numbers])
    # A token is predicted at the position of the token before it.
    places = np.concatenate([pack.places[text][:-1] for text in texts])
    target = np.concatenate([encoded[number].ids[1:] for number in numbers])
    offsets = np.cumsum(lengths) - lengths
    scored = np.concatenate(
        [
            offset + encoded[number].scored - 1
            for offset, number in zip(offsets, numbers, strict=True)
        ]
    )
    in_full = np.zeros(len(target), dtype=bool)
    in_full[scored] = True
    statistics = reader.token_statistics(final, places, target, in_full)
    rows = np.concatenate(
        [np.arange(scores.starts[number], scores.starts[number + 1]) for number in numbers]
    )
    for column, values in zip(scores.tokens, statistics, strict=True):
        column[rows] = values[scored]
    scores.text[numbers] = np.add.reduceat(statistics.logprob.astype(np.float64), offsets)


def _sha256(encoded: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for one in encoded:
        lengths = np.array([len(one.prefix), len(one.ids), len(one.read)])
        for values in (lengths, one.prefix, one.ids, one.read):
            digest.update(values.astype("<i8").tobytes())
    return digest.hexdigest()


def _tokens(encoded: Sequence[Encoded], statistics: TokenStatistics) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "example": np.repeat(np.arange(len(encoded)), [len(one.read) for one in encoded]),
            "position": np.concatenate([one.read + one.shift for one in encoded]).astype(np.int32),
            "token": np.concatenate([one.ids[one.read] for one in encoded]).astype(np.int32),
            **statistics._asdict(),
        }
    )


def output_table(encoded: Sequence[Encoded], scores: TextScores) -> pd.DataFrame:
    """One row per example: its rows in the stores, and statistics of its answer, in nats."""
    rows = row_starts(encoded)
    count = np.array([len(one.answer) for one in encoded])
    first = np.cumsum(count) - count
    tokens = np.array([len(one.ids) + one.shift for one in encoded])
    predicted = np.array([len(one.ids) - 1 for one in encoded])
    statistics = scores.of_answer(encoded)
    logprob = statistics.logprob.astype(np.float64)
    total = np.add.reduceat(logprob, first)
    return pd.DataFrame(
        {
            "row_start": rows[:-1],
            "row_count": np.diff(rows),
            "input_tokens": tokens,
            "logprob_sum": total,
            "logprob_mean": total / count,
            "logprob_min": np.minimum.reduceat(logprob, first),
            "logprob_first": logprob[first],
            "entropy_mean": np.add.reduceat(statistics.entropy.astype(np.float64), first) / count,
            "entropy_first": statistics.entropy[first].astype(np.float64),
            "margin_mean": np.add.reduceat(statistics.margin.astype(np.float64), first) / count,
            "margin_first": statistics.margin[first].astype(np.float64),
            "rank_first": statistics.rank[first],
            "text_logprob_mean": scores.text / predicted,
        }
    )

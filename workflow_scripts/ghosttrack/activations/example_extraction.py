"""From examples to activation stores of their answer tokens, or others, and to what the model itself thought of each token."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ghosttrack.activations.candidates import Rivals
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.extraction import Origin, StoreFiles, to_block
from ghosttrack.activations.hooks import captured
from ghosttrack.activations.other_prompts import Asked
from ghosttrack.activations.packed_texts import Opinions, Pack, Reader
from ghosttrack.activations.store import Header
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime.progress import Progress

# Rows wait in memory for their order within a window of so many batches of examples:
# 4,096 rows x 25 stores x 1,024 x 4 bytes are 400 MB.
WINDOW_BATCHES = 8
WINDOW_ROWS = 4096


class ExampleTables(NamedTuple):
    """`tokens`: one row per stored activation row; `outputs`: one row per example."""

    tokens: pd.DataFrame
    outputs: pd.DataFrame


class TextScores(NamedTuple):
    """What a model says of texts.

    tokens: of each scored token, in the order of the texts; starts: (texts + 1,) where those of each text begin.
    text: (texts,) log-probability of a text behind its lead token.
    """

    tokens: Opinions
    starts: npt.NDArray[np.int64]
    text: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, encoded: Sequence[Encoded]) -> "TextScores":
        """Room for the scores of these texts."""
        starts = _starts([one.scored for one in encoded])
        rooms = (np.empty(int(starts[-1]), dtype=kind) for kind in ("f4", "f4", "f4", "i4"))
        return cls(Opinions(*rooms), starts, np.empty(len(encoded)))

    def of_read(self, encoded: Sequence[Encoded]) -> Opinions:
        """Of the tokens that are read."""
        return self._of(encoded, [one.read for one in encoded])

    def of_answer(self, encoded: Sequence[Encoded]) -> Opinions:
        """Of the answers' tokens."""
        return self._of(encoded, [one.answer for one in encoded])

    def _of(
        self, encoded: Sequence[Encoded], positions: Sequence[npt.NDArray[np.int64]]
    ) -> Opinions:
        chosen = np.concatenate(
            [
                start + np.searchsorted(one.scored, own)
                for start, one, own in zip(self.starts[:-1], encoded, positions, strict=True)
            ]
        )
        return Opinions(*(values[chosen] for values in self.tokens))


def extract_examples(
    model: Any,
    made_by: Origin,
    encoded: Sequence[Encoded],
    layers: Sequence[int],
    targets: Sequence[StoreFiles],
    embedding: StoreFiles,
    *,
    site: Site,
    batch: int,
    together: int,
    asked: Asked | None = None,
    rivals: Rivals | None = None,
) -> ExampleTables:
    """Write the activations of all examples at the tokens that are read, one store a layer and one of the token embedding.

    Args:
        model: causal language model in evaluation mode.
        made_by: its identity, kept in the stores.
        encoded: the examples; rows are stored in their order.
        layers: ascending, 0-based; `targets` in the same order.
        embedding: where the token-embedding output goes.
        site: which output of each block.
        batch: examples per forward pass, about; changes nothing but memory and rounding noise.
        together: tokens of a sequence up to which texts share one, from `Limits`.
        asked: answers that follow other prompts of the examples; they are read with the examples and told what they came to.
        rivals: of the same examples; shown every prompt's end.
    Returns:
        Tables without text and id columns, which the caller knows.
    Raises:
        UserError: no such layers, activations that are not finite.
    """
    starts = row_starts(encoded)
    every = [*encoded, *(asked.encoded if asked else ())]
    scores = TextScores.empty(encoded)
    stored = [model.get_input_embeddings(), *site_modules(model, layers, site)]
    modules = [*stored, *(rivals.modules() if rivals else ())]
    digest, width = _sha256(encoded), model.config.get_text_config().hidden_size
    headers = [
        (embedding, None, "embedding", stored[0].embedding_dim),
        *((target, layer, site, width) for target, layer in zip(targets, layers, strict=True)),
    ]
    progress = Progress("extracting", len(every), "texts")
    with ExitStack() as stack, torch.inference_mode():
        reader = Reader(model, together)
        writers = [
            stack.enter_context(
                StoreWriter(
                    *files,
                    Header(*made_by, layer, name, None, digest),
                    rows=int(starts[-1]),
                    d_model=own_width,
                )
            )
            for files, layer, name, own_width in headers
        ]
        outputs = stack.enter_context(captured(modules, stop=False))
        for window, others in _windows(every, len(encoded), batch):
            first, end = int(starts[window[0]]), int(starts[window[-1] + 1])
            held = [torch.empty(end - first, own_width) for *_, own_width in headers]
            for pack in reader.packs(every, [*window, *others], batch):
                final = reader.final(pack)
                own = [place for place, number in enumerate(pack.numbers) if number < len(encoded)]
                if own:
                    rows, places = read_rows(encoded, pack, own, starts)
                    for block, output in zip(held, outputs[: len(stored)], strict=True):
                        block[rows - first] = output[0, places].float().cpu()
                    score_texts(reader, encoded, pack, own, final, scores)
                    if rivals:
                        rivals.take(pack, own, final, outputs[len(stored) :])
                if asked and len(own) < len(pack.numbers):
                    rest = [
                        place for place, number in enumerate(pack.numbers) if number >= len(encoded)
                    ]
                    asked.take(reader, pack, rest, len(encoded), final, outputs[1 : len(stored)])
                progress.advance(len(pack.numbers))
            for writer, block in zip(writers, held, strict=True):
                writer.append(to_block(block))
    return ExampleTables(_tokens(encoded, scores.of_read(encoded)), output_table(encoded, scores))


def row_starts(encoded: Sequence[Encoded]) -> npt.NDArray[np.int64]:
    """First row of each text, and the number of all rows, (texts + 1,)."""
    return _starts([one.read for one in encoded])


def _starts(positions: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(own) for own in positions])]).astype(np.int64)


def _windows(
    every: Sequence[Encoded], examples: int, batch: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Consecutive examples, up to WINDOW_BATCHES batches or about WINDOW_ROWS rows at a time, and the texts behind
    the first `examples` whose prompts are first seen in them.
    """
    waiting: dict[tuple[bytes, bytes], list[int]] = {}
    for number in range(examples, len(every)):
        waiting.setdefault(_prompt(every[number]), []).append(number)
    window: list[int] = []
    rows = 0
    for number in range(examples):
        window.append(number)
        rows += len(every[number].read)
        if len(window) == WINDOW_BATCHES * batch or rows >= WINDOW_ROWS or number == examples - 1:
            yield (
                window,
                [other for one in window for other in waiting.pop(_prompt(every[one]), ())],
            )
            window, rows = [], 0


def _prompt(one: Encoded) -> tuple[bytes, bytes]:
    return one.before.tobytes(), one.ids[: one.answer[0]].tobytes()


def read_rows(
    encoded: Sequence[Encoded], pack: Pack, texts: Sequence[int], starts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], torch.Tensor]:
    """Rows of some texts of a pack, and where in the sequence they stand."""
    numbers = [pack.numbers[text] for text in texts]
    rows = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in numbers])
    places = [
        pack.places[text][encoded[number].read] for text, number in zip(texts, numbers, strict=True)
    ]
    return rows, torch.from_numpy(np.concatenate(places))


def score_texts(
    reader: Reader,
    encoded: Sequence[Encoded],
    pack: Pack,
    texts: Sequence[int],
    final: torch.Tensor,
    scores: TextScores,
) -> None:
    """Fill in the scores of some texts of a pack."""
    numbers = [pack.numbers[text] for text in texts]
    lengths = np.array([len(encoded[number].ids) - 1 for number in numbers])
    place = np.concatenate(
        [pack.places[text][:-1] for text in texts]
    )  # where each token was predicted
    target = np.concatenate([encoded[number].ids[1:] for number in numbers])
    offsets = np.cumsum(lengths) - lengths
    inside = np.concatenate(
        [
            offset + encoded[number].scored - 1
            for offset, number in zip(offsets, numbers, strict=True)
        ]
    )
    closely = np.zeros(len(target), dtype=bool)
    closely[inside] = True
    found = reader.opinions(final, place, target, closely)
    rows = np.concatenate(
        [np.arange(scores.starts[number], scores.starts[number + 1]) for number in numbers]
    )
    for kept, values in zip(scores.tokens, found, strict=True):
        kept[rows] = values[inside]
    scores.text[numbers] = np.add.reduceat(found.logprob.astype(np.float64), offsets)


def _sha256(encoded: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for example in encoded:
        digest.update(
            np.array(
                [len(example.before), len(example.ids), len(example.read)], dtype="<i8"
            ).tobytes()
        )
        digest.update(
            example.before.astype("<i8").tobytes()
            + example.ids.astype("<i8").tobytes()
            + example.read.astype("<i8").tobytes()
        )
    return digest.hexdigest()


def _tokens(encoded: Sequence[Encoded], scores: Opinions) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "example": np.repeat(np.arange(len(encoded)), [len(one.read) for one in encoded]),
            "position": np.concatenate([one.read + one.shift for one in encoded]).astype(np.int32),
            "token": np.concatenate([one.ids[one.read] for one in encoded]).astype(np.int32),
            **scores._asdict(),
        }
    )


def output_table(encoded: Sequence[Encoded], scores: TextScores) -> pd.DataFrame:
    """One row per example: where its rows are, and sums, means, minima and first values over its answer, in nats."""
    rows = row_starts(encoded)
    count = np.array([len(one.answer) for one in encoded])
    first = np.cumsum(count) - count
    tokens = np.array([len(one.ids) + one.shift for one in encoded])
    predicted = np.array([len(one.ids) - 1 for one in encoded])
    of_token = scores.of_answer(encoded)
    logprob = of_token.logprob.astype(np.float64)
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
            "entropy_mean": np.add.reduceat(of_token.entropy.astype(np.float64), first) / count,
            "entropy_first": of_token.entropy[first].astype(np.float64),
            "margin_mean": np.add.reduceat(of_token.margin.astype(np.float64), first) / count,
            "margin_first": of_token.margin[first].astype(np.float64),
            "rank_first": of_token.rank[first],
            "text_logprob_mean": scores.text / predicted,
        }
    )

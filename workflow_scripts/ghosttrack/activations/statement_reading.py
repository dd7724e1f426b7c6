"""Read whole statements: pooled activations of some layers, and statistics of their tokens.

All tokens of a text count, its full stop included. Activations are pooled in three ways, because the
false part of a statement can stand anywhere and the model can notice it late. Every text is read
behind the same few true statements of several kinds, which show the model what kind of text it is.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ghosttrack.activations import example_extraction as reading
from ghosttrack.activations import example_tokens
from ghosttrack.activations.hooks import captured
from ghosttrack.activations.packed_texts import PackedReader, TokenStatistics
from ghosttrack.errors import UserError
from ghosttrack.inputs.segmentation import sentences
from ghosttrack.inputs.sites import Site, site_modules
from ghosttrack.runtime import files
from ghosttrack.runtime.progress import Progress

# mean: over all tokens; last: the last token, usually the full stop; end: the token before it.
POOLS = ("mean", "last", "end")
# At most so many of the run's layers are read, evenly spaced from the first on.
LAYERS = 3
OUTPUTS = (
    "surprise_mean",
    "surprise_max",
    "surprise_second",
    "surprise_late",
    "surprise_end",
    "entropy_mean",
    "excess_mean",
    "excess_max",
    "excess_late",
    "excess_end",
    "rank_mean",
    "rank_max",
    "rank_end",
    "margin_mean",
    "worst_position",
    "log_tokens",
)
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
_END_MARKS = ".!?\u3002\uff01\uff1f\u0964\u2026"
# As in the stores: a token counts as an attention sink from this multiple of the median norm on.
_MASSIVE = 10.0


class PooledTexts(NamedTuple):
    """states: (texts, layers, POOLS, d_model) float32; outputs: (texts, OUTPUTS) float64."""

    states: NDArray[np.float32]
    outputs: NDArray[np.float64]


def as_statement(text: str) -> str:
    """The text without white space at its ends, with a full stop unless an end mark is there."""
    text = text.strip()
    closed = text.rstrip("\"'\u201d\u2019)]")
    return text if closed.endswith(tuple(_END_MARKS)) else f"{text}."


def by_sentence(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per sentence of every text, as `score` judges texts; equal `id`: the same text.

    `text` is the sentence. The other columns are those of the whole text.
    """
    parts = [[text[each.start : each.stop] for each in sentences(text)] for text in frame["text"]]
    return frame.assign(text=parts).explode("text", ignore_index=True)


def read_statements(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    site: Site,
    limit: int,
    batch: int,
    packed: int,
    dataset: str = "statements",
) -> PooledTexts:
    """Read every text behind CONTEXT.

    Args:
        model: causal language model in evaluation mode.
        layers: ascending, 0-based.
        limit: longest input of the model in tokens.
        batch: texts per forward pass, approximately; changes only memory and rounding noise.
        packed: longest packed sequence in tokens, from `Limits`.
        dataset: named in errors.
    Raises:
        UserError: a text is too long for the model.
    """
    frame = pd.DataFrame({"id": range(1, len(texts) + 1), "text": [as_statement(t) for t in texts]})
    frame = frame.assign(
        answer_start=0, answer_end=frame["text"].str.len(), relation="", mode="given"
    )
    encoded = example_tokens.encode(
        frame, tokenizer, limit, dataset, [fitting_context(tokenizer, limit)] * len(frame), "all"
    )
    starts = reading.row_starts(encoded)
    scores = reading.TextScores.empty(encoded)
    width = model.config.get_text_config().hidden_size
    states = np.empty((len(texts), len(layers), len(POOLS), width), dtype=np.float32)
    outputs = np.empty((len(texts), len(OUTPUTS)))
    progress = Progress("reading statements", len(texts), "texts")
    modules = site_modules(model, list(layers), site)
    # Texts of similar length share a pass.
    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number].ids))
    with captured(modules, stop=False) as hidden, torch.inference_mode():
        reader = PackedReader(model, packed)
        reader.cache_prefixes(encoded)
        for pack in reader.packs(encoded, order, batch):
            numbers = range(len(pack.numbers))
            _, places = reading.read_rows(encoded, pack, numbers, starts)
            final = reader.final(pack)
            reading.score_texts(reader, encoded, pack, numbers, final, scores)
            values = [layer[0, places].float().cpu() for layer in hidden]
            at = 0
            for number in pack.numbers:
                tokens = slice(at, at + len(encoded[number].read))
                at = tokens.stop
                rows = slice(int(starts[number]), int(starts[number + 1]))
                statistics = TokenStatistics._make(column[rows] for column in scores.tokens)
                outputs[number] = output_row(statistics)
                for index, layer in enumerate(values):
                    states[number, index] = pool(layer[tokens])
            progress.advance(len(pack.numbers))
    return PooledTexts(states, outputs)


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


def flat(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """(texts, layers, POOLS, d_model) as (texts, POOLS, columns): all layers of a pool in one row."""
    texts, layers, pools, width = states.shape
    return np.ascontiguousarray(states.transpose(0, 2, 1, 3).reshape(texts, pools, layers * width))


def pool(x: torch.Tensor) -> NDArray[np.float32]:
    """Activations of one text in one layer, (tokens, d_model), pooled to (POOLS, d_model).

    The mean leaves attention sinks out: tokens with ten times the median norm.
    """
    norm = torch.linalg.vector_norm(x, dim=1)
    included = x[norm <= _MASSIVE * norm.median()]
    return np.asarray(torch.stack([included.mean(dim=0), x[-1], x[max(len(x) - 2, 0)]]).numpy())


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


def write(read: PooledTexts, path: Path, manifest: Path, attributes: Mapping[str, object]) -> None:
    """Write pooled texts atomically: states in half precision with a scale per layer, and outputs.

    The manifest holds the attributes and the SHA-256 of the file.
    """
    from safetensors.numpy import save as to_bytes

    # The largest value becomes 1: half precision has no range to spare for massive activations.
    scale = np.maximum(np.abs(read.states).max(axis=(0, 2, 3)), np.finfo(np.float32).tiny)
    states = (read.states / scale[:, None, None]).astype(np.float16)
    stored = to_bytes(
        {
            "states": states,
            "scale": scale.astype(np.float32),
            "outputs": np.ascontiguousarray(read.outputs),
        }
    )
    with files.atomic_write(path, "wb") as stream:
        stream.write(stored)
    described = {
        "pools": list(POOLS),
        "outputs": list(OUTPUTS),
        "texts": len(read.outputs),
        "sha256": hashlib.sha256(stored).hexdigest(),
        **attributes,
    }
    files.write_json(manifest, described)


def load(path: Path, manifest: Path, statements: Path) -> tuple[PooledTexts, dict[str, Any]]:
    """Pooled texts with the content of their manifest.

    Raises:
        UserError: a file was changed after it was written, or is of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    about = dict(files.read_json(manifest))
    if about.get("pools") != list(POOLS) or about.get("outputs") != list(OUTPUTS):
        raise UserError(
            f"{manifest} was written by another version of GhostTrack: delete it and run the "
            "workflow again"
        )
    stored = path.read_bytes()
    for changed, actual, expected in (
        (path, hashlib.sha256(stored).hexdigest(), about.get("sha256")),
        (statements, files.sha256_file(statements), about.get("statements_sha256")),
    ):
        if actual != expected:
            raise UserError(
                f"{changed} is not the file that {manifest} describes (damaged or edited): delete "
                f"{path.parent} and run the workflow again"
            )
    try:
        arrays = from_bytes(stored)
        states = arrays["states"].astype(np.float32) * arrays["scale"][:, None, None]
        return PooledTexts(states, arrays["outputs"]), about
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run again") from None

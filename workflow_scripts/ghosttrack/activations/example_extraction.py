"""From examples to activation stores of their answer tokens, and to what the model itself thought of each token."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ghosttrack.activations import shared_prefix
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.extraction import Origin, Site, StoreFiles, captured, site_modules, to_block
from ghosttrack.activations.shared_prefix import Started
from ghosttrack.activations.store import Header
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.progress import Progress

# Examples are sorted by length within a window, so that a batch holds little padding; the window's
# rows wait in memory for their order: 4,096 rows x 25 stores x 1,024 x 4 bytes are 400 MB.
WINDOW_BATCHES = 8
WINDOW_ROWS = 4096
# Positions whose logits are held at once: 256 x 50,000 x 4 bytes are 51 MB, and a few copies.
HEAD_ROWS = 256
# The head applied by hand must give the model's own logits up to rounding.
HEAD_TOLERANCE = 1e-3


class ExampleTables(NamedTuple):
    """`tokens`: one row per stored activation row; `outputs`: one row per example."""

    tokens: pd.DataFrame
    outputs: pd.DataFrame


class TokenScores(NamedTuple):
    """Per answer row, in nats: what the model's prediction one position earlier says of the token."""

    logprob: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int32]


def extract_examples(
    model: Any, made_by: Origin, encoded: Sequence[Encoded], layers: Sequence[int], targets: Sequence[StoreFiles],
    embedding: StoreFiles, *, site: Site, batch: int,
) -> ExampleTables:  # fmt: skip
    """Write the answer-token activations of all examples, one store a layer and one of the token embedding.

    Args:
        model: causal language model in evaluation mode.
        made_by: its identity, kept in the stores.
        encoded: the examples; rows are stored in their order.
        layers: ascending, 0-based; `targets` in the same order.
        embedding: where the token-embedding output goes.
        site: which output of each block.
        batch: examples per forward pass; changes nothing but memory and rounding noise.
    Returns:
        Tables without text and id columns, which the caller knows.
    Raises:
        UserError: no such layers, activations that are not finite, a model whose head cannot be applied by hand.
    """
    starts = np.concatenate([[0], np.cumsum([len(example.answer) for example in encoded])])
    rows = int(starts[-1])
    scores = TokenScores(*(np.empty(rows, dtype=kind) for kind in ("f4", "f4", "f4", "i4")))
    text_logprob = np.empty(len(encoded), dtype=np.float64)
    modules = [model.get_input_embeddings(), *site_modules(model, layers, site)]
    headers = [
        (embedding, None, "embedding"),
        *((target, layer, site) for target, layer in zip(targets, layers, strict=True)),
    ]
    digest, width = _sha256(encoded), model.config.get_text_config().hidden_size
    progress = Progress("extracting", len(encoded), "examples")
    with ExitStack() as stack, torch.inference_mode():
        _check_head(model, encoded[0])
        writers = [
            stack.enter_context(
                StoreWriter(*files, Header(*made_by, layer, name, None, digest), rows=rows, d_model=width)
            )
            for files, layer, name in headers
        ]
        begun = Beginnings(model)
        outputs = stack.enter_context(captured(modules, stop=False))
        for window in _windows(encoded, batch):
            first = int(starts[window[0]])
            held = torch.empty(len(modules), int(starts[window[-1] + 1]) - first, width)
            for chosen in batches(encoded, window, batch):
                answer_rows = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in chosen])
                texts = [encoded[number].ids for number in chosen]
                final = shared_prefix.forward(model, texts, begun.after(encoded[chosen[0]].before))
                example, position = answer_index([encoded[number] for number in chosen])
                for place, output in enumerate(outputs):
                    held[place, answer_rows - first] = output[example, position].float().cpu()
                text_logprob[chosen] = score_tokens(
                    model, [encoded[number] for number in chosen], final, answer_rows, scores
                )
                progress.advance(len(chosen))
            for writer, block in zip(writers, held, strict=True):
                writer.append(to_block(block))
    return ExampleTables(_tokens(encoded, scores), output_table(encoded, scores, starts, text_logprob))


def _windows(encoded: Sequence[Encoded], batch: int) -> Iterator[list[int]]:
    """Consecutive examples, up to WINDOW_BATCHES batches or about WINDOW_ROWS answer rows at a time."""
    window: list[int] = []
    rows = 0
    for number, example in enumerate(encoded):
        window.append(number)
        rows += len(example.answer)
        if len(window) == WINDOW_BATCHES * batch or rows >= WINDOW_ROWS:
            yield window
            window, rows = [], 0
    if window:
        yield window


def batches(encoded: Sequence[Encoded], window: Sequence[int], batch: int) -> Iterator[list[int]]:
    """The examples of a window in batches of one beginning and of like length."""
    groups: dict[bytes, list[int]] = {}
    for number in sorted(window, key=lambda number: len(encoded[number].ids)):
        groups.setdefault(encoded[number].before.tobytes(), []).append(number)
    for group in groups.values():
        for at in range(0, len(group), batch):
            yield group[at : at + batch]


class Beginnings:
    """The shared beginnings of texts, each computed when it is first needed."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._started: dict[bytes, Started] = {}

    def after(self, before: npt.NDArray[np.int64]) -> Started | None:
        """What the model keeps of a beginning; None for an empty one."""
        key = before.tobytes()
        if len(before) and key not in self._started:
            self._started[key] = shared_prefix.start(self._model, [before])
        return self._started.get(key)


def answer_index(chosen: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch index and position of every answer token, in order."""
    example = np.repeat(np.arange(len(chosen)), [len(one.answer) for one in chosen])
    return torch.from_numpy(example), torch.from_numpy(np.concatenate([one.answer for one in chosen]))


def score_tokens(
    model: Any, chosen: Sequence[Encoded], final: torch.Tensor, answer_rows: npt.NDArray[np.int64], scores: TokenScores
) -> npt.NDArray[np.float64]:
    """Fill `scores` at `answer_rows`; return each example's log-probability over all tokens but the separator."""
    lengths = [len(one.ids) - 1 for one in chosen]
    example = np.repeat(np.arange(len(chosen)), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])  # where each token was predicted
    target = torch.from_numpy(np.concatenate([one.ids[1:] for one in chosen]))
    # The stored row of each predicted token; -1 for tokens outside the answer.
    row = np.full(len(target), -1, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    row[np.concatenate([offset + one.answer - 1 for offset, one in zip(offsets, chosen, strict=False)])] = answer_rows
    logprob = np.empty(len(target), dtype=np.float32)
    hidden = final[torch.from_numpy(example), torch.from_numpy(position)]  # (predicted tokens, d_model)
    for start in range(0, len(target), HEAD_ROWS):
        part = slice(start, start + HEAD_ROWS)
        logs = torch.log_softmax(logits_of(model, hidden[part]), dim=-1)  # (part, vocabulary)
        logprob[part] = logs.gather(1, target[part, None].to(logs.device))[:, 0].cpu().numpy()
        inside = row[part] >= 0
        if inside.any():
            kept = row[part][inside]
            logs = logs[torch.from_numpy(inside)]
            own = torch.from_numpy(logprob[part][inside]).to(logs.device)
            top = logs.topk(2, dim=-1).values
            scores.logprob[kept] = own.cpu().numpy()
            scores.entropy[kept] = -(logs.exp() * logs).nan_to_num(0.0).sum(dim=-1).cpu().numpy()
            scores.margin[kept] = (top[:, 0] - top[:, 1]).cpu().numpy()
            scores.rank[kept] = (logs > own[:, None]).sum(dim=-1).cpu().numpy()
    return np.add.reduceat(logprob.astype(np.float64), offsets[:-1])


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """float32 logits of final hidden states, with the few things architectures do after the head."""
    config = model.config.get_text_config()
    logits: torch.Tensor = model.get_output_embeddings()(hidden).float()
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def _check_head(model: Any, example: Encoded) -> None:
    ids = torch.from_numpy(example.ids[None]).to(model.device)
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    ours = logits_of(model, shared_prefix.forward(model, [example.ids], None)[0])
    worst = float((torch.log_softmax(own, -1) - torch.log_softmax(ours, -1)).abs().max())
    if not worst < HEAD_TOLERANCE:
        raise UserError(
            f"{type(model).__name__} changes its logits after the head (log-probabilities differ by {worst:.3g}), "
            "in a way that is not known here: this architecture is not supported; choose another model"
        )


def _sha256(encoded: Sequence[Encoded]) -> str:
    digest = hashlib.sha256()
    for example in encoded:
        digest.update(np.array([len(example.before), len(example.ids), len(example.answer)], dtype="<i8").tobytes())
        digest.update(
            example.before.astype("<i8").tobytes()
            + example.ids.astype("<i8").tobytes()
            + example.answer.astype("<i8").tobytes()
        )
    return digest.hexdigest()


def _tokens(encoded: Sequence[Encoded], scores: TokenScores) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "example": np.repeat(np.arange(len(encoded)), [len(one.answer) for one in encoded]),
            "position": np.concatenate([one.answer + one.shift for one in encoded]).astype(np.int32),
            "token": np.concatenate([one.ids[one.answer] for one in encoded]).astype(np.int32),
            **scores._asdict(),
        }
    )


def output_table(
    encoded: Sequence[Encoded],
    scores: TokenScores,
    starts: npt.NDArray[np.int64],
    text_logprob: npt.NDArray[np.float64],
) -> pd.DataFrame:
    """One row per example: where its rows are, and sums, means, minima and first values over its answer, in nats."""
    first, count = starts[:-1], np.diff(starts)
    tokens = np.array([len(one.ids) + one.shift for one in encoded])
    predicted = np.array([len(one.ids) - 1 for one in encoded])
    logprob = scores.logprob.astype(np.float64)
    total = np.add.reduceat(logprob, first)
    return pd.DataFrame(
        {
            "row_start": first,
            "row_count": count,
            "input_tokens": tokens,
            "logprob_sum": total,
            "logprob_mean": total / count,
            "logprob_min": np.minimum.reduceat(logprob, first),
            "logprob_first": logprob[first],
            "entropy_mean": np.add.reduceat(scores.entropy.astype(np.float64), first) / count,
            "entropy_first": scores.entropy[first].astype(np.float64),
            "margin_mean": np.add.reduceat(scores.margin.astype(np.float64), first) / count,
            "margin_first": scores.margin[first].astype(np.float64),
            "rank_first": scores.rank[first],
            "text_logprob_mean": text_logprob / predicted,
        }
    )

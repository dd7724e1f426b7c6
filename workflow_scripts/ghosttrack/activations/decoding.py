"""Batched continuation of prompts, greedy or sampled.

Where `model_check` found it exact for the model, prompts of different lengths are padded into one
batch and their shared prefix is computed once. Other prompts are batched by length.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghosttrack.activations.limits import Limits
from ghosttrack.activations.packed_texts import logits_of
from ghosttrack.errors import UserError
from ghosttrack.inputs import models
from ghosttrack.runtime.progress import Progress

log = logging.getLogger("ghosttrack")

# padded: prompts of any length, padded after the shared prefix, which is computed once; KV cache.
# cached: prompts of one length; KV cache.
# plain: prompts of one length; every step reads the whole sequence.
Mode = Literal["padded", "cached", "plain"]
# Prompts of a padded batch share at least this fraction of their tokens.
MIN_SHARED = 0.5


class Continuation(NamedTuple):
    """The text generated after a prompt, up to the end of its first line that is not blank."""

    text: str
    # Number of characters of `text`, from its start, that are complete after each new token.
    ends: tuple[int, ...]
    logprobs: tuple[float, ...]  # of each new token at temperature 1, in nats


class _Decoder(NamedTuple):
    """Settings of all batches. `breaks`, `blank`: (vocabulary,) bool, has a line end, is blank."""

    tokenizer: Any
    temperature: float
    breaks: Tensor
    blank: Tensor
    stops: list[int]  # tokens that end an answer and are no part of it


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    limits: Limits,
    max_new_tokens: int,
    batch: int,
    dataset: str,
    draws: NDArray[np.float64] | None = None,
    temperature: float = 1.0,
    stops: Sequence[int] | None = None,
) -> list[Continuation]:
    """Continue each prompt, greedily or by inverse-transform sampling.

    Sampling takes the first token at which the cumulative probability exceeds the random number, so
    a continuation depends on the random numbers drawn for it alone. The batch size changes a text
    only where rounding decides between equal probabilities.

    Args:
        model: causal language model in evaluation mode.
        prompts: texts, which the model reads after the separator, or complete token ids.
        limits: where batched continuation is exact.
        draws: (prompts, max_new_tokens) random numbers in [0, 1); None: greedy.
        temperature: divides the logits before sampling.
        batch: prompts per batch; changes only memory and rounding noise.
        dataset: named in errors.
        stops: tokens that end an answer and are no part of it; None: all special tokens.
    Raises:
        UserError: a prompt and its answer do not fit the model's context.
    """
    prefix = models.separator(tokenizer)
    limit = models.max_context(model.config.to_dict())
    coded = _token_ids(tokenizer, prompts, prefix)
    if stops is None:
        stops = sorted(models.special_tokens(tokenizer))
    longest = max(map(len, coded), default=0)
    if longest + max_new_tokens > limit:
        raise UserError(
            f"data set {dataset}: a prompt of {longest} tokens and generation.max_new_tokens "
            f"{max_new_tokens} exceed the {limit} tokens that the model takes; lower "
            "generation.max_new_tokens or shorten the questions"
        )
    prepare(model, max_new_tokens, prefix, stops)
    vocabulary = int(model.config.get_text_config().vocab_size)
    texts = tokenizer.batch_decode([[token] for token in range(min(vocabulary, len(tokenizer)))])
    texts += [""] * (vocabulary - len(texts))  # unused rows of the embedding
    breaks, blank = (
        torch.tensor([test(text) for text in texts])
        for test in (lambda text: "\n" in text, _is_blank)
    )
    decoder = _Decoder(tokenizer, temperature, breaks, blank, list(stops))
    results: dict[int, Continuation] = {}
    progress = Progress("generating", len(coded), "answers")
    for chosen, mode in _batches(coded, batch, limits, max_new_tokens):
        steps = _Chooser(
            decoder, None if draws is None else torch.from_numpy(draws[chosen]), len(chosen)
        )
        prompt_ids = [coded[number] for number in chosen]
        new = continue_batch(model, prompt_ids, steps, mode, prefix)
        logprobs = torch.stack(steps.logprobs, dim=1).cpu()  # (prompts, steps)
        for number, ids, row, logprob, length in zip(
            chosen, prompt_ids, new, logprobs, steps.lengths.tolist(), strict=True
        ):
            results[number] = _continuation(
                decoder, ids[1:], row[:length].tolist(), logprob[:length].tolist()
            )
        progress.advance(len(chosen))
    return [results[number] for number in range(len(coded))]


def _is_blank(text: str) -> bool:
    return not text.strip()


def prepare(model: Any, max_new_tokens: int, pad: int, stops: Sequence[int]) -> None:
    """Switch off sampling defaults of the model's generation_config (penalties, temperature)."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=pad,
    )


def _token_ids(
    tokenizer: Any, prompts: Sequence[str] | Sequence[Sequence[int]], prefix: int
) -> list[list[int]]:
    """Token ids that the model reads: the separator and a tokenised text, or the given ids."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        return [[int(token) for token in prompt] for prompt in prompts]
    coded = tokenizer(texts, add_special_tokens=False, verbose=False, split_special_tokens=True)[
        "input_ids"
    ]
    return [[prefix, *ids] for ids in coded]


def _batches(
    coded: Sequence[list[int]], size: int, limits: Limits, new: int
) -> Iterator[tuple[list[int], Mode]]:
    """Batches of up to `size` prompts: with a shared prefix, or of one length if not padded."""
    short = [number for number, ids in enumerate(coded) if len(ids) + new <= limits.padded]
    for chosen in _groups(
        coded, sorted(short, key=lambda number: coded[number]), size, _begin_alike
    ):
        yield chosen, "padded"
    rest = sorted(
        set(range(len(coded))) - set(short), key=lambda number: (len(coded[number]), coded[number])
    )
    if rest:
        log.warning(
            "%d of %d prompts are batched by length, which is slower: for this model, padded "
            "batches are not exact%s, or were not checked (model_check.csv)",
            len(rest),
            len(coded),
            f" beyond {limits.padded - new} tokens" if limits.padded > new else "",
        )
    for chosen in _groups(
        coded, rest, size if limits.batched else 1, lambda one, other: len(one) == len(other)
    ):
        yield chosen, "cached" if len(coded[chosen[0]]) + new <= limits.cached else "plain"


def _groups(
    coded: Sequence[list[int]],
    order: Sequence[int],
    size: int,
    fits: Callable[[list[int], list[int]], bool],
) -> Iterator[list[int]]:
    """Consecutive prompts in `order`, up to `size`, each of which fits the first of its group."""
    waiting: list[int] = []
    for number in order:
        if waiting and (len(waiting) == size or not fits(coded[waiting[0]], coded[number])):
            yield waiting
            waiting = []
        waiting.append(number)
    if waiting:
        yield waiting


def _begin_alike(one: list[int], other: list[int]) -> bool:
    return _shared_prefix([one, other]) >= MIN_SHARED * len(other)


def _shared_prefix(coded: Sequence[list[int]]) -> int:
    """Length in tokens of the prefix that all share, shorter than each."""
    # All others lie between the first and the last in lexicographic order, so they share it, too.
    pairs = enumerate(zip(min(coded), max(coded), strict=False))
    shortest = min(map(len, coded)) - 1
    return min(shortest, next((index for index, (one, other) in pairs if one != other), shortest))


def continue_batch(
    model: Any, coded: Sequence[list[int]], steps: "TokenChooser", mode: Mode, pad: int
) -> Tensor:
    """Continue the prompts of one batch.

    Args:
        model: after `prepare`.
        coded: token ids of each prompt; of one length unless `mode` is padded.
        steps: chooses each token and decides when to stop.
        pad: any token.
    Returns:
        (prompts, steps) token ids on the CPU.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList

    width = max(map(len, coded))
    shared = _shared_prefix(coded) if mode == "padded" else 0
    ids = torch.full((len(coded), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(coded):
        start = width - (len(prompt) - shared)
        ids[row, :shared], mask[row, :shared] = torch.tensor(prompt[:shared]), 1
        ids[row, start:], mask[row, start:] = torch.tensor(prompt[shared:]), 1
    if mode == "plain":
        return _without_cache(model, ids.to(model.device), steps)
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.inference_mode():
        sequences: Tensor = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=_read_once(model, ids, mask, shared) if shared else None,
            use_cache=True,
            logits_processor=LogitsProcessorList([steps.choose]),
            stopping_criteria=StoppingCriteriaList([steps.stop]),
        ).cpu()
    return sequences[:, width:]


def _read_once(model: Any, ids: Tensor, mask: Tensor, shared: int) -> Any:
    """KV cache of padded prompts, in which the model reads no token twice.

    It holds the `shared` tokens at the start of all prompts. If prompts are equal, as several
    samples of one prompt are, it also holds their other tokens except the last.

    Args:
        ids, mask: (prompts, length) token ids, and 1 where a token is no padding.
    """
    backbone = models.backbone(model)
    past = backbone(input_ids=ids[:1, :shared], use_cache=True).past_key_values
    distinct: dict[tuple[int, ...], int] = {}
    same = [distinct.setdefault(tuple(row), len(distinct)) for row in ids.tolist()]
    if len(distinct) == len(ids) or shared == ids.shape[1] - 1:
        past.batch_repeat_interleave(len(ids))
        return past
    past.batch_repeat_interleave(len(distinct))
    rows = [same.index(number) for number in range(len(distinct))]
    known = mask[rows, :-1]
    # Without positions, some architectures count the padding.
    takes_positions = "position_ids" in inspect.signature(backbone.forward).parameters
    positions = {"position_ids": known.cumsum(dim=1)[:, shared:] - 1} if takes_positions else {}
    past = backbone(
        input_ids=ids[rows, shared:-1],
        attention_mask=known,
        past_key_values=past,
        use_cache=True,
        **positions,
    ).past_key_values
    past.batch_select_indices(torch.tensor(same, device=ids.device))
    return past


@torch.inference_mode()
def _without_cache(model: Any, ids: Tensor, steps: "TokenChooser") -> Tensor:
    """Continue prompts (prompts, length) with a pass over the whole sequence at every step.

    The model gets the tokens alone. `generate` also passes a mask and positions, with which some
    architectures (RoBERTa) give other results.
    """
    length = ids.shape[1]
    for _ in range(model.generation_config.max_new_tokens):
        final = models.backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
        # Of a model that is spread over GPUs, the backbone ends on another one than the tokens.
        scores = logits_of(model, final[:, -1]).to(ids.device)
        ids = torch.cat([ids, steps.choose(ids, scores).argmax(dim=-1, keepdim=True)], dim=1)
        if bool(steps.stop(ids).all()):
            break
    return ids[:, length:].cpu()


class TokenChooser(Protocol):
    """Chooses the tokens of a batch, step by step."""

    def choose(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (prompts, vocabulary) whose maximum is at the chosen token."""

    def stop(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        """Whether each continuation is complete, (prompts,) bool."""


class _Chooser:
    """Chooses the tokens of one batch, greedily or by `draws`, until the answers are complete."""

    def __init__(self, decoder: _Decoder, draws: Tensor | None, count: int) -> None:
        self.logprobs: list[Tensor] = []  # (prompts,) at every step
        self.lengths = torch.zeros(count, dtype=torch.long)  # tokens of each continuation
        self._decoder, self._draws = decoder, draws
        self._started = torch.zeros(count, dtype=torch.bool)  # a token that is not blank was chosen
        self._done = torch.zeros(count, dtype=torch.bool)

    def choose(self, _: Tensor, scores: Tensor) -> Tensor:
        """As `TokenChooser.choose`; records the log-probability of the chosen token."""
        if self._draws is None:
            chosen = scores.argmax(dim=-1, keepdim=True)
            shown = scores
        else:
            # float64: a cumulative sum over the vocabulary in float32 would lose rare tokens.
            summed = torch.softmax(scores.double() / self._decoder.temperature, dim=-1).cumsum(
                dim=-1
            )
            number = self._draws[:, len(self.logprobs), None].to(summed.device) * summed[:, -1:]
            chosen = torch.searchsorted(summed, number, right=True).clamp_(max=scores.shape[-1] - 1)
            shown = torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)
        logs = torch.log_softmax(scores.float(), dim=-1)
        self.logprobs.append(logs.gather(1, chosen)[:, 0])
        return shown

    def stop(self, ids: Tensor, *_: Any, **__: Any) -> Tensor:
        """As `TokenChooser.stop`: complete once the first line that is not blank has ended."""
        token = ids[:, -1].cpu()
        self.lengths += ~self._done
        self._started |= ~self._decoder.blank[token]
        self._done |= (self._started & self._decoder.breaks[token]) | torch.isin(
            token, torch.tensor(self._decoder.stops, dtype=token.dtype)
        )
        return self._done.to(ids.device)


def _continuation(
    decoder: _Decoder, prompt: list[int], new: list[int], logprobs: list[float]
) -> Continuation:
    """Decode after the prompt: some tokenizers drop the leading space of a text decoded alone."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    shown = [
        [token for token in new[:count] if token not in decoder.stops]
        for count in range(len(new) + 1)
    ]
    whole = [decoder.tokenizer.decode(prompt + tokens, **options) for tokens in shown]
    # The first bytes of a character decode to a replacement character, which is not yet its end.
    ends = [_agreeing(text, whole[-1]) - len(whole[0]) for text in whole[1:]]
    return Continuation(whole[-1][len(whole[0]) :], tuple(ends), tuple(logprobs))


def _agreeing(one: str, other: str) -> int:
    """Number of characters at the start in which two texts agree."""
    pairs = enumerate(zip(one, other, strict=False))
    shortest = min(len(one), len(other))
    return next((index for index, (a, b) in pairs if a != b), shortest)

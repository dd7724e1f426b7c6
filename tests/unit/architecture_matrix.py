"""The architecture matrix: every way in which jobs run a model, against the plain forward pass.

    row(architectures.make("mistral"))  # {"residual": "exact", "read together": "exact", ...}

A cell says which path a job takes under the limits that the model check found, or why the model is
refused. A cell that begins with WRONG is a path whose numbers differ from the plain model's, or
that fails.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from plain_reading import PlainModel
from torch import Tensor, nn

from ghosttrack.activations import decoding, hooks, model_check
from ghosttrack.activations.example_tokens import Encoded
from ghosttrack.activations.limits import Limits
from ghosttrack.activations.packed_texts import Pack, PackedReader, TokenStatistics
from ghosttrack.errors import UserError
from ghosttrack.inputs import chat, sites

COLUMNS = (
    "residual",
    "mlp",
    "attn",
    "read alone",
    "read together",
    "longer than window",
    "generation with padding",
    "chat template",
)
EXACT, REFUSED, WRONG = "exact", "refused: ", "WRONG: "

# Tolerances for rounding: of a hidden state, relative to its norm; in nats.
HIDDEN, NATS = 1e-3, 1e-3
# Two tokens with a smaller difference of log-probabilities are equally likely.
TIE = 1e-4
VOCABULARY, SPECIAL = 128, 7  # ids below SPECIAL are special tokens, or those of the chat template
SEPARATOR = 0
LONGEST = 64  # tokens
NEW = 4  # tokens of a continuation
BATCH = 4

# Model types whose MLP output mixes tokens, with the reason.
MIXING_MLP = {"inkling_text": "a short convolution follows the MLP"}

Cell = Callable[["Subject"], str]
Ids = list[int]


class Subject:
    """A model with its plain forward pass and the limits of its fast paths.

    Args:
        model: a model of `architectures`.
        limits: of the fast paths; None: those that the model check finds.

    Raises:
        UserError: the check refuses the model.
    """

    def __init__(self, model: Any, limits: Limits | None = None) -> None:
        self.model = model
        text = np.array(Draw(0).ids(900), dtype=np.int64)
        self.limits = limits or model_check.check(model, text, SEPARATOR, "resid_post").limits
        self.plain = PlainModel(model)
        self.layers = list(range(len(self.plain.blocks)))
        about = model.config.get_text_config()
        self.longest = min(LONGEST, getattr(about, "max_position_embeddings", LONGEST))


class Draw:
    """Random texts."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def ids(self, count: int) -> Ids:
        """`count` random ordinary tokens."""
        return [int(each) for each in self.generator.integers(SPECIAL, VOCABULARY, count)]

    def shuffled(self, values: Sequence[Any]) -> list[Any]:
        """The values in random order."""
        return [values[place] for place in self.generator.permutation(len(values))]


def row(model: Any, limits: Limits | None = None) -> dict[str, str]:
    """The cells of one model, by column."""
    try:
        subject = Subject(model, limits)
    except UserError as refusal:
        return dict.fromkeys(COLUMNS, REFUSED + str(refusal))
    return {column: _cell(CELLS[column], subject) for column in COLUMNS}


def _cell(fill: Cell, subject: Subject) -> str:
    try:
        with torch.inference_mode():
            return fill(subject)
    except UserError as refusal:
        return REFUSED + str(refusal)
    except Exception as error:  # any exception of a reader is a cell of the matrix
        return f"{WRONG}{type(error).__name__}: {error}"


# ---- comparisons
def require_same_states(found: Tensor, true: Tensor, what: str) -> None:
    """Compare hidden states, both (tokens, d)."""
    assert found.shape == true.shape, (
        f"{what} has shape {tuple(found.shape)}, not {tuple(true.shape)}"
    )
    gap = torch.linalg.vector_norm(found - true, dim=-1) / torch.linalg.vector_norm(
        true, dim=-1
    ).clamp(min=1e-20)
    assert float(gap.max()) <= HIDDEN, f"{what} differs by {float(gap.max()):.2g} of its length"


def require_same_nats(found: Any, true: Tensor, what: str) -> None:
    """Compare values in nats, of equal shape."""
    gap = float((torch.as_tensor(found) - true).abs().max())
    assert gap <= NATS, f"{what} differs by {gap:.2g} nats"


# ---- stored activations of a block
def residual(subject: Subject) -> str:
    """Contexts of equal length, as in `extract_contexts`."""
    draw = Draw(1)
    contexts = [[SEPARATOR, *draw.ids(subject.longest - 1)] for _ in range(3)]
    size = len(contexts) if subject.limits.batched else 1
    true = [subject.plain.read(context).blocks for context in contexts]
    modules = sites.site_modules(subject.model, subject.layers, "resid_post")
    with hooks.captured(modules, stop=True) as outputs:
        for start in range(0, len(contexts), size):
            hooks.run_to_highest(subject.model, torch.tensor(contexts[start : start + size]))
            for place, blocks in enumerate(true[start : start + size]):
                for output, block in zip(outputs, blocks, strict=True):
                    require_same_states(output[place], block, "a block's output")
    return EXACT


def added(site: Literal["attn_out", "mlp_out"], subject: Subject) -> str:
    """Attention and MLP outputs add up to what a block adds; only attention mixes tokens."""
    attention = sites.site_modules(subject.model, subject.layers, "attn_out")
    mlp = sites.site_modules(subject.model, subject.layers, "mlp_out")
    ids = torch.tensor([[SEPARATOR, *Draw(2).ids(7)]])
    with (
        entering(subject.plain.blocks, change=False) as entered,
        hooks.captured([*attention, *mlp], stop=False) as outputs,
    ):
        subject.model(input_ids=ids, use_cache=False)
    kept = [output.clone() for output in outputs]
    left = subject.plain.read(ids[0].tolist()).blocks
    for layer in subject.layers:
        from_attention, from_mlp = kept[layer][0], kept[len(subject.layers) + layer][0]
        require_same_states(
            from_attention + from_mlp, left[layer] - entered[layer][0], "what a block adds"
        )
        block = subject.plain.blocks[layer]
        if site == "attn_out":
            changed = _behind_a_change(subject.model, ids, block, attention[layer])
            assert not torch.allclose(changed, from_attention[1:], rtol=1e-3), (
                "attn_out mixes no tokens"
            )
        elif subject.model.config.model_type not in MIXING_MLP:
            with returning(attention[layer], kept[layer]):
                changed = _behind_a_change(subject.model, ids, block, mlp[layer])
            require_same_states(changed, from_mlp[1:], "mlp_out behind another first token")
    return EXACT


def _behind_a_change(model: Any, ids: Tensor, block: nn.Module, module: nn.Module) -> Tensor:
    """Output of a module for later tokens, (tokens - 1, d_model), with a changed first token.

    The first token's hidden state is changed where it enters the block.
    """
    with entering([block], change=True), hooks.captured([module], stop=False) as outputs:
        model(input_ids=ids, use_cache=False)
    return outputs[0][0, 1:]


@contextmanager
def entering(blocks: Sequence[nn.Module], *, change: bool) -> Iterator[list[Tensor]]:
    """Collect the hidden states that enter each block, (1, tokens, d_model).

    With `change`, the first token's are changed.
    """
    entered: list[Tensor] = []

    def changed(value: Tensor) -> Tensor:
        entered.append(value.clone())
        other = value.clone()
        if change:
            other[0, 0] = other[0, 0].roll(1)
        return other

    def enter(_block: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if arguments:
            return (changed(arguments[0]), *arguments[1:]), options
        return arguments, {**options, "hidden_states": changed(options["hidden_states"])}

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def returning(module: nn.Module, tensor: Tensor) -> Iterator[None]:
    """Replace the main output of a module by `tensor`."""

    def replaced(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        return (
            type(output)((tensor.clone(), *output[1:]))
            if isinstance(output, tuple | list)
            else tensor.clone()
        )

    handle = module.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


# ---- texts
def encoded(whole: Sequence[int], before: int, prompt: int) -> Encoded:
    """A text whose first `before` tokens are shared, and whose prompt ends after `prompt` tokens.

    At least one token of the prompt is not shared.
    """
    ids = np.array(whole[before:], dtype=np.int64)
    answer = np.arange(prompt - before, len(ids))
    return Encoded(ids, answer, np.arange(1, len(ids)), np.array(whole[:before], dtype=np.int64), 1)


def short_texts(longest: int) -> list[Encoded]:
    """2 to 20 tokens; some share a prompt, some a prefix that is read once, some both."""
    draw = Draw(3)
    prompts = [[SEPARATOR, *draw.ids(count)] for count in (0, 5, 11)]
    texts = [
        encoded([*prompt, *draw.ids(rest)], 0, len(prompt))
        for prompt in prompts
        for rest in (1, 3, 8)
    ]
    begun = [SEPARATOR, *draw.ids(8)]
    for middle in ([], draw.ids(4)):
        prompt = [*begun, *middle]
        texts += [
            encoded([*prompt, *draw.ids(rest)], len(begun) - 1, len(prompt)) for rest in (1, 4, 7)
        ]
    return draw.shuffled([text for text in texts if len(whole(text)) <= longest])


def long_texts(longest: int) -> list[Encoded]:
    """Texts of up to `longest` tokens, three windows or more, among short ones."""
    draw = Draw(4)
    begun = [SEPARATOR, *draw.ids(longest // 3)]
    prompt = [SEPARATOR, *draw.ids(longest // 4)]
    texts = [
        encoded([*prompt, *draw.ids(rest)], 0, len(prompt)) for rest in (longest // 8, longest // 2)
    ]
    texts += [
        encoded([*begun, *draw.ids(rest)], len(begun) - 1, len(begun))
        for rest in (2, longest // 4, longest // 3)
    ]
    texts += [
        encoded([SEPARATOR, *draw.ids(length)], 0, 2) for length in (3, longest // 2, longest - 4)
    ]
    return draw.shuffled(texts)


def whole(text: Encoded) -> Ids:
    """All token ids of a text."""
    return [int(each) for each in (*text.prefix, *text.ids)]


# ---- reading
def read_alone(subject: Subject) -> str:
    """Each text in a separate sequence."""
    _read(subject, PackedReader(subject.model, 0), short_texts(subject.longest))
    return EXACT


def read_together(subject: Subject) -> str:
    """Short texts, packed as far as the limits allow."""
    texts = short_texts(subject.longest)
    _read(subject, PackedReader(subject.model, subject.limits.packed), texts)
    return _reading(subject, texts)


def longer_than_window(subject: Subject) -> str:
    """Long and short texts in one call."""
    texts = long_texts(subject.longest)
    _read(subject, PackedReader(subject.model, subject.limits.packed), texts)
    return _reading(subject, texts)


def _reading(subject: Subject, texts: Sequence[Encoded]) -> str:
    longest = max(len(whole(text)) for text in texts)
    return EXACT if longest <= subject.limits.packed else f"{EXACT}, alone"


def _read(subject: Subject, reader: PackedReader, texts: Sequence[Encoded]) -> None:
    modules = sites.site_modules(subject.model, subject.layers, "resid_post")
    seen: list[int] = []
    with hooks.captured(modules, stop=False) as outputs:
        for pack in reader.packs(texts, range(len(texts)), LONGEST):
            final = reader.final(pack)
            kept = [output[0].clone() for output in outputs]
            for number, places in zip(pack.numbers, pack.places, strict=True):
                true = subject.plain.read(whole(texts[number]))
                start = len(texts[number].prefix)
                for output, block in zip([*kept, final], [*true.blocks, true.final], strict=True):
                    require_same_states(
                        output[torch.from_numpy(places)], block[start:], "a hidden state"
                    )
            _require_same_statistics(subject, reader, texts, pack, final)
            seen += pack.numbers
    assert sorted(seen) == list(range(len(texts))), "each text is read once"


def _require_same_statistics(
    subject: Subject, reader: PackedReader, texts: Sequence[Encoded], pack: Pack, final: Tensor
) -> None:
    """Compare the statistics of all predicted tokens of a pack."""
    place = np.concatenate([places[:-1] for places in pack.places])
    target = np.concatenate([texts[number].ids[1:] for number in pack.numbers])
    found = reader.token_statistics(final, place, target, np.ones(len(place), dtype=bool))
    logs = torch.cat(
        [
            subject.plain.read(whole(texts[number])).logprobs[len(texts[number].prefix) : -1]
            for number in pack.numbers
        ]
    )
    _require_statistics(found, logs, torch.from_numpy(target))


def _require_statistics(found: TokenStatistics, logs: Tensor, target: Tensor) -> None:
    own = logs.gather(1, target[:, None])[:, 0]
    top = logs.topk(2, dim=1).values
    require_same_nats(found.logprob, own, "a log-probability")
    require_same_nats(found.entropy, -(logs.exp() * logs).nan_to_num(0.0).sum(dim=1), "an entropy")
    require_same_nats(found.margin, top[:, 0] - top[:, 1], "a margin")
    rank = torch.from_numpy(found.rank)
    least, most = ((logs > own[:, None] + gap).sum(dim=1) for gap in (NATS, -NATS))
    assert bool(((least <= rank) & (rank <= most)).all()), "a rank differs"


# ---- generation
START, END = "<|start|>", "<|end|>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} "
    + START
    + " {{ message['role'] }} {{ message['content'] }} "
    + END
    + "{% endfor %}{% if add_generation_prompt %} "
    + START
    + " assistant{% endif %}"
)


@functools.cache
def tokenizer(*special: str) -> Any:
    """A word-level tokenizer: `w17` has id 17. The chat template's markers are tokens.

    Args:
        special: the markers that are special tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "w1", "w2", START, END, "user", "assistant"]
    words += [f"w{number}" for number in range(len(words), VOCABULARY)]
    made = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w1")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="<s>",
        chat_template=TEMPLATE,
        additional_special_tokens=list(special),
    )


def prompts_of(longest: int) -> list[Ids]:
    """Prompts of 2 to `longest` - NEW tokens.

    The lengths of prompts with a common prefix differ by up to a half.
    """
    draw = Draw(5)
    most = longest - NEW
    # Some exceed the window during generation.
    crossing = [count for count in (5, 6, 13, 14) if count < most]
    prompts = [[SEPARATOR, *draw.ids(count)] for count in (1, most // 2, most - 1, *crossing)]
    for shared in (most // 7, most // 4, most // 2):
        begun = [SEPARATOR, *draw.ids(shared - 1)]
        prompts += [[*begun, *draw.ids(own)] for own in (1, shared // 2, shared)]
    return draw.shuffled(prompts)


def generation(subject: Subject) -> str:
    """Greedy continuations, and sampled ones of a short and a long prompt."""
    prompts = prompts_of(subject.longest)
    _continue(subject, tokenizer(), prompts, [SEPARATOR], None)
    repeated = [
        prompt for prompt in (min(prompts, key=len), max(prompts, key=len)) for _ in range(3)
    ]
    _continue(
        subject,
        tokenizer(),
        repeated,
        [SEPARATOR],
        np.random.default_rng(6).random((len(repeated), NEW)),
    )
    return _writing(subject, prompts)


def _writing(subject: Subject, prompts: Sequence[Ids]) -> str:
    longest = max(map(len, prompts)) + NEW
    if longest <= subject.limits.padded:
        return EXACT
    return f"{EXACT}, by length" if longest <= subject.limits.cached else f"{EXACT}, without cache"


def _continue(
    subject: Subject, words: Any, prompts: Sequence[Ids], stops: Ids, draws: Any
) -> list[Ids]:
    """New tokens of each prompt, each compared with the plain model on all tokens before it."""
    written = decoding.complete(
        subject.model,
        words,
        prompts,
        limits=subject.limits,
        max_new_tokens=NEW,
        batch=BATCH,
        dataset="matrix",
        draws=draws,
        temperature=1.0,
        stops=stops,
    )
    result = []
    for number, (prompt, one) in enumerate(zip(prompts, written, strict=True)):
        new: Ids = words.convert_tokens_to_ids(one.text.split())
        if len(new) < len(one.logprobs):  # the stop token is not part of the text
            logs = subject.plain.read([*prompt, *new]).logprobs[-1]
            new.append(min(stops, key=lambda token: abs(float(logs[token]) - one.logprobs[-1])))
        assert len(new) == len(one.logprobs), "a continuation has tokens after its stop token"
        assert len(new) == NEW or new[-1] in stops, "a continuation ends early"
        for step, (token, logprob) in enumerate(zip(new, one.logprobs, strict=True)):
            logs = subject.plain.read([*prompt, *new[:step]]).logprobs[-1]
            require_same_nats(logprob, logs[token], "a new token's log-probability")
            _require_choice(logs, token, None if draws is None else float(draws[number, step]))
        result.append(new)
    return result


def _require_choice(logs: Tensor, token: int, draw: float | None) -> None:
    """The token is the likeliest, or the first whose cumulative probability exceeds the draw."""
    if draw is None:
        assert float(logs.max() - logs[token]) <= TIE, "a new token is not the likeliest"
        return
    summed = logs.double().exp().cumsum(0)
    below = float(summed[token - 1]) if token else 0.0
    assert below - NATS <= draw <= float(summed[token]) + NATS, "a new token is not the sampled one"


def in_chat(subject: Subject) -> str:
    """Continue conversations in a chat template, and read them again with their answers."""
    words = tokenizer(START, END)
    prompts = conversations(words, subject.longest - NEW)
    answers = _continue(subject, words, prompts, chat.answer_ends(words, None), None)
    shared = next(
        place for place, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1
    )
    texts = [
        encoded([*prompt, *answer], shared - 1, len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    _read(subject, PackedReader(subject.model, subject.limits.packed), texts)
    reading, writing = _reading(subject, texts), _writing(subject, prompts)
    return writing + reading.removeprefix(EXACT)


def conversations(words: Any, most: int) -> list[Ids]:
    """Token ids of conversations that share a first exchange, or of short ones if `most` < 20."""
    draw = Draw(7)
    demonstrations = [
        " ".join(words.convert_ids_to_tokens(draw.ids(count))) for count in (most // 4, 1)
    ]
    found = []
    for length in (1, most // 8, most // 3):
        question = " ".join(words.convert_ids_to_tokens(draw.ids(length)))
        found.append(
            chat.render(
                words, [question] if most < 20 else [*demonstrations, question], "a question"
            ).ids
        )
    return found


CELLS: dict[str, Cell] = {
    "residual": residual,
    "mlp": functools.partial(added, "mlp_out"),
    "attn": functools.partial(added, "attn_out"),
    "read alone": read_alone,
    "read together": read_together,
    "longer than window": longer_than_window,
    "generation with padding": generation,
    "chat template": in_chat,
}


# ---- the page
# Part of a refusal's message, and its note on the page.
REASONS = {
    "has no two modules": "No two modules of a block return what the block adds to the residual stream.",
    "has no ModuleList": "No list of modules has as many blocks as the configuration states.",
    "does not map one vector of": "A block does not take and return one vector for each token.",
    "is not the output of block": "A block does not read what the block below it returns.",
    "is not causal": "A later token changes the hidden states of earlier tokens.",
    "cannot read a text": "The model fails on a plain text without a cache.",
}


def page(rows: dict[str, dict[str, str]]) -> str:
    """The table in Markdown: a line per model, sorted by name, and a note per refusal reason."""
    notes: list[str] = []
    lines = [f"| model type | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name in sorted(rows):
        model_type, _, variant = name.partition("+")
        cells = [_shown(rows[name][column], notes) for column in COLUMNS]
        lines.append(
            f"| {' | '.join([f'`{model_type}`' + (f', {variant}' if variant else ''), *cells])} |"
        )
    types = len({name.partition("+")[0] for name in rows})
    refused = sum(cells["residual"].startswith(REFUSED) for cells in rows.values())
    summary = f"{len(rows)} models of {types} model types; {refused} of them are refused."
    return "\n".join(
        [
            summary,
            "",
            *lines,
            "",
            *(f"{place}. {note}" for place, note in enumerate(notes, start=1)),
        ]
    )


def _shown(cell: str, notes: list[str]) -> str:
    if not cell.startswith(REFUSED):
        return cell
    note = reason(cell.removeprefix(REFUSED))
    if note not in notes:
        notes.append(note)
    return f"refused ({notes.index(note) + 1})"


def reason(refusal: str) -> str:
    """The reason of a refusal, without the names and numbers of one model."""
    return next(reason for part, reason in REASONS.items() if part in refusal)

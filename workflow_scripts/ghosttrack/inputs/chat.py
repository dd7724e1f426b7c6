"""Questions in a chat template: their token ids, and the tokens that end an answer.

The ids are those of transformers' `apply_chat_template`. With `sanitize_control_tokens` the text of
a special token inside a question becomes ordinary tokens, so a question cannot open or close a
message.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.inputs.models import first_line, special_tokens

log = logging.getLogger("ghosttrack")

PLAIN = "set generation.prompt: plain"
# Templates that show a date get this one instead of today's, so that a run gives the same ids on
# any day. It is the default of the template of Llama 3.1.
DATE = date(2024, 7, 26)
_VARIABLES: dict[str, Any] = {"enable_thinking": False, "date_string": DATE.strftime("%d %b %Y")}
# The call by which templates read today's date; group 2 is the format.
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
# Chat templates of reasoning models begin a chain of thought with this text.
_THINKING = "<think>"
# Question and answer by which a template is examined.
_QUESTION, _WORD = "How many days has a week?", "seven"
# An answer is tokenised after one of these, because a tokenizer may add a space before the first
# word of a text. The second one is for answers that begin with a line end.
_LEADS = ("\n", "x")


class Prompt(NamedTuple):
    """A rendered conversation up to the assistant's next message: its text and its token ids."""

    text: str
    ids: list[int]


class Continuation(NamedTuple):
    """A text that follows a prompt: its token ids, and the character range of each token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def require_template(tokenizer: Any, model: str) -> None:
    """Check that the tokenizer has a chat template that renders a question after a demonstration.

    Args:
        tokenizer: of the model. model: its name, for errors.
    Raises:
        UserError: no template, or one that fails, writes today's date or begins a chain of thought.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"generation.prompt: chat needs a chat template, but the tokenizer of {model} has "
            f"none; {PLAIN}, or choose an instruct model"
        )
    source = _source(tokenizer, model)
    if "strftime_now(" in _TODAY.sub("", source):
        raise UserError(
            f"generation.prompt: the chat template of {model} writes today's date in a computed "
            f"format, so its prompts change every day; {PLAIN}, or write the format as a string "
            "literal in the template in the model's directory"
        )
    rendered = render(tokenizer, [_QUESTION, _WORD, "How many legs has a dog?"], model)
    if rendered.text.rstrip().endswith(_THINKING):
        raise UserError(
            f"generation.prompt: the chat template of {model} begins a chain of thought "
            f"({_THINKING}) before every answer, also with enable_thinking: false; {PLAIN}, or "
            "choose a model that answers directly"
        )
    prompt, whole = _rendered_example(tokenizer)
    between = whole.removeprefix(prompt).partition(_WORD)[0] if whole.startswith(prompt) else ""
    if between.strip():
        raise UserError(
            f"generation.prompt: the chat template of {model} writes {between.strip()[:80]!r} "
            "before an answer but not at the end of a prompt (add_generation_prompt), so the "
            f"model would continue the question; {PLAIN}, or add it to the template in the model's "
            "directory"
        )
    if "enable_thinking" in source:
        log.info("the chat template of %s is rendered with enable_thinking: false", model)


def _source(tokenizer: Any, model: str) -> str:
    """The text of the template; if there are several, of the one named `default`."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(
            f"generation.prompt: the tokenizer of {model} has several chat templates and none "
            f"named default ({first_line(error)}); {PLAIN}, or name one of them default"
        ) from error


def render(tokenizer: Any, turns: Sequence[str], name: str) -> Prompt:
    """The text and the token ids of a conversation with a generation prompt.

    A special token that the template writes is one id. The text of a special token inside a message
    becomes ordinary tokens. The beginning-of-sequence token is present only if the template writes
    it.

    Args:
        tokenizer: with a chat template.
        turns: alternating messages of user and assistant; the first and the last are the user's.
        name: of the question or model, for errors.
    Raises:
        UserError: the template fails or omits a message, or special tokens in a message cannot be
            split.
    """
    text = str(_apply(tokenizer, turns, name, tokenize=False, add_generation_prompt=True))
    options = {"tokenize": True, "return_dict": False, "add_generation_prompt": True}
    ids = _apply(tokenizer, turns, name, sanitize_control_tokens=True, **options)
    unsplit = _apply(tokenizer, turns, name, **options)
    # They differ if a message contains the text of a special token. A tokenizer may then add a
    # space.
    if ids != unsplit and tokenizer.decode(ids) != tokenizer.decode(unsplit):
        raise UserError(
            f"generation.prompt: {name} contains the text of a special token, and the tokenizer "
            f"cannot split it without changing the text around it; {PLAIN}, or remove it from the "
            "question"
        )
    if lost := [turn for turn in turns if turn.strip() not in text]:
        raise UserError(
            f"generation.prompt: the chat template omits the message {lost[-1][:80]!r} of {name}; "
            "expected a template that shows every message of user and assistant: "
            f"{PLAIN}, or choose another model"
        )
    return Prompt(text, [int(token) for token in ids])


def _apply(tokenizer: Any, turns: Sequence[str], name: str, **options: Any) -> Any:
    """The result of `apply_chat_template` for alternating messages of user and assistant."""
    try:
        template = _TODAY.sub(
            lambda match: repr(DATE.strftime(match[2])), tokenizer.get_chat_template()
        )
        return tokenizer.apply_chat_template(
            _messages(turns), chat_template=template, **options, **_VARIABLES
        )
    except Exception as error:  # templates raise errors of any type
        raise UserError(
            f"generation.prompt: the chat template cannot render {name} ({first_line(error)}); "
            f"{PLAIN}, or correct the question or the template in the model's directory"
        ) from error


def _messages(turns: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if number % 2 else "user", "content": str(turn)}
        for number, turn in enumerate(turns)
    ]


def ask(questions: pd.DataFrame, turns: Sequence[Sequence[str]], tokenizer: Any) -> pd.DataFrame:
    """The questions with `prompt` rendered by the chat template, and a new column `prompt_ids`.

    Args:
        questions: with the columns id and prompt.
        turns: messages of each question, see `render`.
        tokenizer: with a chat template.
    Raises:
        UserError: as `render`; names the question.
    """
    prompts = [
        render(tokenizer, messages, f"question {name}")
        for name, messages in zip(questions["id"], turns, strict=True)
    ]
    return questions.assign(
        prompt=[prompt.text for prompt in prompts], prompt_ids=[prompt.ids for prompt in prompts]
    )


def answer_ends(tokenizer: Any, generation_config: Any) -> list[int]:
    """Ids of the tokens that end an answer, in ascending order.

    They are all special tokens, the end-of-sequence tokens of the generation config, and the added
    tokens that the template writes, such as the one that closes an assistant's message.

    Args:
        tokenizer: with a chat template.
        generation_config: of the model; None if it has none.
    """
    texts = _rendered_example(tokenizer)
    written = {
        token
        for text in texts
        for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    }
    markers = {
        token
        for token, about in tokenizer.added_tokens_decoder.items()
        if token in written and _is_marker(about.content)
    }
    return sorted(markers | special_tokens(tokenizer) | set(_listed(generation_config)))


def answer_lead(tokenizer: Any) -> str:
    """The white space between the generation prompt and the assistant's message."""
    prompt, whole = _rendered_example(tokenizer)
    before = whole.removeprefix(prompt).partition(_WORD)[0]
    return before if whole.startswith(prompt) and not before.strip() else ""


def _rendered_example(tokenizer: Any) -> tuple[str, str]:
    """An example conversation up to the answer, and with the answer."""
    prompt = _apply(
        tokenizer, [_QUESTION], "a question", tokenize=False, add_generation_prompt=True
    )
    whole = _apply(tokenizer, [_QUESTION, _WORD], "an answered question", tokenize=False)
    return str(prompt), str(whole)


def _is_marker(content: str) -> bool:
    """Whether an added token is markup such as `<think>`, not a word, a number or white space."""
    shown = content.strip()
    return len(shown) > 2 and not (shown[0].isalnum() or shown[-1].isalnum())


def _listed(generation_config: Any) -> Iterator[int]:
    eos = getattr(generation_config, "eos_token_id", None)
    yield from eos if isinstance(eos, list) else [eos] if eos is not None else []


def continuations(tokenizer: Any, texts: Sequence[str]) -> list[Continuation]:
    """Tokens of texts that follow a prompt: no added space, and no special tokens in the text."""
    options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
    results: list[Continuation | None] = [None] * len(texts)
    for lead in (*_LEADS, ""):
        pending = [index for index, result in enumerate(results) if result is None]
        if not pending:
            break
        head = tokenizer(lead, **options)["input_ids"] if lead else []
        coded = tokenizer(
            [lead + texts[index] for index in pending], return_offsets_mapping=True, **options
        )
        for index, ids, offsets in zip(
            pending, coded["input_ids"], coded["offset_mapping"], strict=True
        ):
            rest = offsets[len(head) :]
            if ids[: len(head)] == head and all(first >= len(lead) for first, _ in rest):
                results[index] = Continuation(
                    ids[len(head) :], [(a - len(lead), b - len(lead)) for a, b in rest]
                )
    return [result for result in results if result is not None]


def is_asked(examples: pd.DataFrame) -> bool:
    """Whether the examples have token ids of prompts that a chat template rendered."""
    return "prompt_ids" in examples and bool(examples["prompt_ids"].notna().all())


def of_examples(examples: pd.DataFrame, tokenizer: Any) -> list[Continuation]:
    """The text after the rendered prompt of each example; character ranges refer to the whole text.

    Args:
        examples: with the columns text and prompt (the beginning of the text).
        tokenizer: of the model.
    """
    lengths = [len(prompt) for prompt in examples["prompt"]]
    texts = [str(text)[length:] for text, length in zip(examples["text"], lengths, strict=True)]
    return [
        Continuation(rest.ids, [(first + length, last + length) for first, last in rest.offsets])
        for length, rest in zip(lengths, continuations(tokenizer, texts), strict=True)
    ]


def answered(texts: pd.DataFrame, tokenizer: Any) -> pd.DataFrame:
    """Answers to questions as examples: each text gets its rendered prompt, for `encode`.

    Args:
        texts: with the columns id, question, text (the whole answer), answer_start and answer_end.
        tokenizer: with a chat template.
    """
    turns = [[question] for question in texts["question"]]
    asked, lead = ask(texts.assign(prompt=""), turns, tokenizer), answer_lead(tokenizer)
    shift = asked["prompt"].str.len() + len(lead)
    return asked.assign(
        text=asked["prompt"] + lead + asked["text"],
        answer_start=asked["answer_start"] + shift,
        answer_end=asked["answer_end"] + shift,
    )


def ranges_of_answered(texts: pd.DataFrame, tokenizer: Any) -> list[list[tuple[int, int]]]:
    """For each text, the character ranges of the tokens that follow its prompt in `answered`."""
    lead = answer_lead(tokenizer)
    answers = continuations(tokenizer, [lead + text for text in texts["text"]])
    return [
        [(max(first - len(lead), 0), max(last - len(lead), 0)) for first, last in answer.offsets]
        for answer in answers
    ]

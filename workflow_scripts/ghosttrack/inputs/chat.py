"""Questions in the chat template of a tokenizer: their token ids, and the tokens that end an answer.

The ids are those of transformers' `apply_chat_template`. Its `sanitize_control_tokens` splits the text of a special token
inside a question into ordinary tokens, so a question cannot open or close a message.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.inputs.models import first_line

log = logging.getLogger("ghosttrack")

PLAIN = "set generation.prompt: plain"
# Templates that show a date get this one, not today's: a run must give the same ids on any day. It is the date that the
# template of Llama 3.1 writes where it knows no other.
DATE = date(2024, 7, 26)
_VARIABLES: dict[str, Any] = {"enable_thinking": False, "date_string": DATE.strftime("%d %b %Y")}
# How templates read today's date; the format is group 2.
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
# Chat templates of reasoning models open a chain of thought with this text.
_THINKING = "<think>"
# The question and the answer on which a template is tried.
_QUESTION, _WORD = "How many days has a week?", "seven"
# Text is tokenised behind one of these. A tokenizer may put a space before the first word of a text, and an answer
# is not the first word of a conversation. The second one is for text that begins with a line end.
_LEADS = ("\n", "x")


class Prompt(NamedTuple):
    """A rendered conversation up to the assistant's next message: its text, and the token ids that the model reads."""

    text: str
    ids: list[int]


class Continuation(NamedTuple):
    """A text behind a prompt: token ids, and the character range in the text of each token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def require_template(tokenizer: Any, model: str) -> None:
    """Check that the tokenizer has a chat template and that it renders a question behind a solved one.

    Args:
        model: named in errors.
    Raises:
        UserError: no template, or one that fails, writes today's date or opens a chain of thought.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"generation.prompt: chat needs a chat template, and the tokenizer of {model} has none; {PLAIN}, or choose "
            "an instruct model"
        )
    source = _source(tokenizer, model)
    if "strftime_now(" in _TODAY.sub("", source):
        raise UserError(
            f"generation.prompt: the chat template of {model} writes today's date in a format that is no literal, so its "
            f"prompts differ from day to day; {PLAIN}, or write the format as text in the template in the model's directory"
        )
    found = render(tokenizer, [_QUESTION, _WORD, "How many legs has a dog?"], model)
    if found.text.rstrip().endswith(_THINKING):
        raise UserError(
            f"generation.prompt: the chat template of {model} opens a chain of thought ({_THINKING}) before every "
            f"answer, also with enable_thinking: false; {PLAIN}, or choose a model that answers directly"
        )
    prompt, whole = _tried(tokenizer)
    between = whole.removeprefix(prompt).partition(_WORD)[0] if whole.startswith(prompt) else ""
    if between.strip():
        raise UserError(
            f"generation.prompt: the chat template of {model} writes {between.strip()[:80]!r} before an answer, and leaves it out "
            f"of the prompt (add_generation_prompt): the model would go on with the question; {PLAIN}, or add it to the "
            "template in the model's directory"
        )
    if "enable_thinking" in source:
        log.info("the chat template of %s is rendered with enable_thinking: false", model)


def _source(tokenizer: Any, model: str) -> str:
    """The template's text; of several named templates that of the name `default`."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(
            f"generation.prompt: the tokenizer of {model} has several chat templates and none named default "
            f"({first_line(error)}); {PLAIN}, or name one of them default"
        ) from error


def render(tokenizer: Any, turns: Sequence[str], name: str) -> Prompt:
    """The conversation as text and as the token ids of `apply_chat_template` with a generation prompt.

    Special tokens that the template writes are single ids. The text of one inside a turn is ordinary tokens. The
    beginning-of-sequence token is there if the template writes it, and is not added.

    Args:
        turns: messages of the user and of the assistant in turn; the first and the last are the user's.
        name: of the question or model, named in errors.
    Raises:
        UserError: the template fails, leaves out the question, or its tokens cannot be told from the question's.
    """
    text = str(_apply(tokenizer, turns, name, tokenize=False, add_generation_prompt=True))
    options = {"tokenize": True, "return_dict": False, "add_generation_prompt": True}
    ids = _apply(tokenizer, turns, name, sanitize_control_tokens=True, **options)
    unsplit = _apply(tokenizer, turns, name, **options)
    # They differ where a message holds the text of a special token; a tokenizer may then add a space behind it.
    if ids != unsplit and tokenizer.decode(ids) != tokenizer.decode(unsplit):
        raise UserError(
            f"generation.prompt: {name} holds the text of a special token, and its tokenizer cannot split that without "
            f"changing what stands around it; {PLAIN}, or remove that text from the question"
        )
    if lost := [turn for turn in turns if turn.strip() not in text]:
        raise UserError(
            f"generation.prompt: the chat template does not show the message {lost[-1][:80]!r} in the conversation of "
            f"{name}; expected a template that shows every message of user and assistant: {PLAIN}, or choose another model"
        )
    return Prompt(text, [int(token) for token in ids])


def _apply(tokenizer: Any, turns: Sequence[str], name: str, **options: Any) -> Any:
    """What `apply_chat_template` makes of messages of user and assistant in turn."""
    try:
        template = _TODAY.sub(
            lambda found: repr(DATE.strftime(found[2])), tokenizer.get_chat_template()
        )
        return tokenizer.apply_chat_template(
            _messages(turns), chat_template=template, **options, **_VARIABLES
        )
    except Exception as error:  # templates raise what they like
        raise UserError(
            f"generation.prompt: the chat template cannot render {name} ({first_line(error)}); {PLAIN}, or correct "
            "the template in the model's directory, or the question that it names"
        ) from error


def _messages(turns: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if place % 2 else "user", "content": str(turn)}
        for place, turn in enumerate(turns)
    ]


def ask(questions: pd.DataFrame, turns: Sequence[Sequence[str]], tokenizer: Any) -> pd.DataFrame:
    """The questions with `prompt` rendered by the chat template, and its token ids in a further column `prompt_ids`.

    Args:
        questions: columns id, prompt.
        turns: of each question, see `render`.
    Raises:
        UserError: naming the question whose text the template or the tokenizer refuses.
    """
    found = [
        render(tokenizer, own, f"question {name}")
        for name, own in zip(questions["id"], turns, strict=True)
    ]
    return questions.assign(
        prompt=[each.text for each in found], prompt_ids=[each.ids for each in found]
    )


def answer_ends(tokenizer: Any, generation_config: Any) -> list[int]:
    """Tokens that end an answer, ascending: none of them is part of one.

    They are every special token, the end-of-sequence tokens of the generation config, and every added token that the
    template writes, such as the one that closes an assistant's message.

    Args:
        generation_config: of the model; None where it has none.
    """
    texts = _tried(tokenizer)
    written = {
        token
        for text in texts
        for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    }
    added = {
        token
        for token, about in tokenizer.added_tokens_decoder.items()
        if about.special or (token in written and _is_marker(about.content))
    }
    return sorted(added | set(tokenizer.all_special_ids) | set(_listed(generation_config)))


def answer_lead(tokenizer: Any) -> str:
    """The blanks that the template writes between the generation prompt and an assistant's message; most write none."""
    prompt, whole = _tried(tokenizer)
    before = whole.removeprefix(prompt).partition(_WORD)[0]
    return before if whole.startswith(prompt) and not before.strip() else ""


def _tried(tokenizer: Any) -> tuple[str, str]:
    """A question up to its answer, and the same with the answer."""
    prompt = _apply(
        tokenizer, [_QUESTION], "a question", tokenize=False, add_generation_prompt=True
    )
    whole = _apply(tokenizer, [_QUESTION, _WORD], "an answered question", tokenize=False)
    return str(prompt), str(whole)


def _is_marker(content: str) -> bool:
    """Whether an added token looks like a template's, as `<think>` does, and not like a word, a number or blanks."""
    shown = content.strip()
    return len(shown) > 2 and not (shown[0].isalnum() or shown[-1].isalnum())


def _listed(generation_config: Any) -> Iterator[int]:
    found = getattr(generation_config, "eos_token_id", None)
    yield from found if isinstance(found, list) else [found] if found is not None else []


def continuations(tokenizer: Any, texts: Sequence[str]) -> list[Continuation]:
    """Tokens of texts that stand behind a prompt: no space is put before them, and nothing in them is a special token."""
    options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": True}
    found: list[Continuation | None] = [None] * len(texts)
    for lead in (*_LEADS, ""):
        waiting = [place for place, each in enumerate(found) if each is None]
        if not waiting:
            break
        head = tokenizer(lead, **options)["input_ids"] if lead else []
        coded = tokenizer(
            [lead + texts[place] for place in waiting], return_offsets_mapping=True, **options
        )
        for place, ids, offsets in zip(
            waiting, coded["input_ids"], coded["offset_mapping"], strict=True
        ):
            rest = offsets[len(head) :]
            if ids[: len(head)] == head and all(first >= len(lead) for first, _ in rest):
                found[place] = Continuation(
                    ids[len(head) :], [(a - len(lead), b - len(lead)) for a, b in rest]
                )
    return [each for each in found if each is not None]


def is_asked(examples: pd.DataFrame) -> bool:
    """Whether the examples were asked in a chat template: they hold the token ids of their prompts."""
    return "prompt_ids" in examples and bool(examples["prompt_ids"].notna().all())


def of_examples(examples: pd.DataFrame, tokenizer: Any) -> list[Continuation]:
    """What stands behind the rendered prompt of each example; character ranges are those in its whole text.

    Args:
        examples: columns text, prompt (the head of the text).
    """
    heads = [len(prompt) for prompt in examples["prompt"]]
    behind = [str(text)[head:] for text, head in zip(examples["text"], heads, strict=True)]
    return [
        Continuation(found.ids, [(first + head, last + head) for first, last in found.offsets])
        for head, found in zip(heads, continuations(tokenizer, behind), strict=True)
    ]


def answered(texts: pd.DataFrame, tokenizer: Any) -> pd.DataFrame:
    """Answers to questions as examples behind their rendered prompts, for `encode`.

    Args:
        texts: columns id, question, text (the answer as a whole), answer_start, answer_end.
    """
    turns = [[question] for question in texts["question"]]
    found, lead = ask(texts.assign(prompt=""), turns, tokenizer), answer_lead(tokenizer)
    heads = found["prompt"].str.len() + len(lead)
    return found.assign(
        text=found["prompt"] + lead + found["text"],
        answer_start=found["answer_start"] + heads,
        answer_end=found["answer_end"] + heads,
    )


def ranges_of_answered(texts: pd.DataFrame, tokenizer: Any) -> list[list[tuple[int, int]]]:
    """The character range in its text of each token behind the prompt of `answered`."""
    lead = answer_lead(tokenizer)
    found = continuations(tokenizer, [lead + text for text in texts["text"]])
    return [
        [(max(first - len(lead), 0), max(last - len(lead), 0)) for first, last in each.offsets]
        for each in found
    ]

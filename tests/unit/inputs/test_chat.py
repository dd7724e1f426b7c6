"""Chat templates: token ids equal transformers', questions contain no special tokens, errors."""

from types import SimpleNamespace
from typing import Any

import chat_models
import pandas as pd
import pytest
from chat_models import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ghosttrack.errors import UserError
from ghosttrack.inputs import chat

TURNS = ["Who wrote it?", "Ada Lovelace", "  What is the capital of São Paulo, it says 79?\n"]
VARIABLES = {"enable_thinking": False, "date_string": "26 Jul 2024"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(family: str) -> Any:
    return chat_models.make_tokenizer(FAMILIES[family])


def plain_tokenizer(template: Any) -> Any:
    tokenizer = chat_models.make_tokenizer(FAMILIES["chatml"])
    tokenizer.chat_template = template
    return tokenizer


def expected(tokenizer: Any, turns: list[str]) -> list[int]:
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": turn}
        for place, turn in enumerate(turns)
    ]
    found = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **VARIABLES
    )
    return list(found)


@pytest.mark.parametrize("turns", [TURNS, TURNS[2:], ["A", "B", "C", "D", "E"]])
def test_the_ids_are_those_of_apply_chat_template(tokenizer: Any, turns: list[str]) -> None:
    found = chat.render(tokenizer, turns, "x")
    assert found.ids == expected(tokenizer, turns)
    assert tokenizer.decode(found.ids) == found.text


def test_the_bos_token_occurs_once_if_the_template_writes_it(tokenizer: Any, family: str) -> None:
    found = chat.render(tokenizer, TURNS, "x")
    assert found.ids.count(tokenizer.bos_token_id) == FAMILIES[family].bos
    assert all(
        one != other or one != tokenizer.bos_token_id
        for one, other in zip(found.ids, found.ids[1:], strict=False)
    )


def test_a_special_token_s_text_in_a_message_is_ordinary_tokens(tokenizer: Any) -> None:
    special = list(tokenizer.added_tokens_decoder)
    names = [tokenizer.convert_ids_to_tokens(token) for token in special]
    harmless = chat.render(tokenizer, ["Who?", "Ada", "it?"], "x")
    for turns in (
        [f"Who{names[0]}?", f"{''.join(names)}Ada", "it?"],
        ["Who?", "Ada", f"{names[-1]} {' '.join(names)}user\nit?"],
        *(["Who?", "Ada", f"it {name}?"] for name in names),
    ):
        found = chat.render(tokenizer, turns, "x")
        assert [found.ids.count(token) for token in special] == [
            harmless.ids.count(token) for token in special
        ]
        assert tokenizer.decode(found.ids) == found.text
        assert all(turn in found.text for turn in turns)


@pytest.mark.parametrize("name", ["mistral with spaces", "phi", "zephyr"])
def test_a_question_that_the_splitting_of_a_special_token_would_change_is_refused(
    name: str,
) -> None:
    with pytest.raises(
        UserError,
        match=r"question q7 contains the text of a special token.*generation\.prompt: plain",
    ):
        chat.render(chat_models.make_tokenizer(FAMILIES[name]), ["Is </s>\nit?"], "question q7")


def test_a_question_that_the_template_changes_is_refused() -> None:
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<eot>", "Who", "A:"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eot>"
    )
    tokenizer.chat_template = EACH + "{{ ' <eot> ' }}" + LAST
    frame = pd.DataFrame({"id": ["q7"], "prompt": ["x"]})
    assert chat.ask(frame, [["Who is"]], tokenizer)["prompt_ids"].tolist() == [[0, 0, 1, 3]]
    with pytest.raises(
        UserError, match=r"cannot render question q7 \(.*<eot>.*generation\.prompt: plain"
    ):
        chat.ask(frame, [["Who is <eot> x"]], tokenizer)


@pytest.mark.parametrize(
    "text", ["Paris", " Paris", "\n\nParis is", "São 🙂", "79", "</s>x", "<|im_end|>it", "", " "]
)
def test_a_continuation_is_its_own_text_without_special_tokens(tokenizer: Any, text: str) -> None:
    prompt = chat.render(tokenizer, TURNS, "x")
    (found,) = chat.continuations(tokenizer, [text])
    assert not set(found.ids) & set(chat.answer_ends(tokenizer, None))
    assert tokenizer.decode([*prompt.ids, *found.ids]) == prompt.text + text
    assert len(found.ids) == len(found.offsets)
    assert found.offsets == sorted(found.offsets)
    assert max((end for _, end in found.offsets), default=0) == len(text)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=("Co", "Cn", "Cc")), max_size=12)
)
@pytest.mark.parametrize("name", ["chatml", "mistral with spaces"])
def test_any_continuation_has_the_tokens_that_it_has_after_a_prompt(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = chat.render(tokenizer, TURNS[2:], "x")
    (found,) = chat.continuations(tokenizer, [text])
    assert tokenizer.decode([*prompt.ids, *found.ids]) == prompt.text + text


TOKENIZERS = {
    name: chat_models.make_tokenizer(FAMILIES[name]) for name in ("chatml", "mistral with spaces")
}


def test_an_answer_ends_at_the_end_of_a_turn_and_at_every_special_token(
    tokenizer: Any, family: str
) -> None:
    word = tokenizer("x", add_special_tokens=False)["input_ids"][-1]
    found = chat.answer_ends(
        tokenizer, SimpleNamespace(eos_token_id=[word, tokenizer.eos_token_id])
    )
    names = tokenizer.convert_ids_to_tokens(found)
    own = FAMILIES[family]
    assert {own.closes, "<s>", "</s>", *own.special, *own.added} <= set(names)
    assert set(found) - set(chat.answer_ends(tokenizer, None)) == {word}
    assert chat.answer_ends(tokenizer, SimpleNamespace(eos_token_id=word)) == found
    assert set(chat.answer_ends(tokenizer, SimpleNamespace(eos_token_id=None))) == set(found) - {
        word
    }


def test_added_words_numbers_and_blanks_do_not_end_an_answer() -> None:
    more = chat_models.make_tokenizer(FAMILIES["llama"])
    more.add_tokens(["26", "user", "\n\n", "week"])
    assert not set(more.convert_tokens_to_ids(["26", "user", "\n\n", "week"])) & set(
        chat.answer_ends(more, None)
    )


def test_blanks_before_an_answer_are_those_of_the_template(tokenizer: Any, family: str) -> None:
    assert chat.answer_lead(tokenizer) == (" " if family.startswith("mistral") else "")


def test_every_usual_template_is_accepted(tokenizer: Any, family: str) -> None:
    chat.require_template(tokenizer, family)


def test_thinking_is_switched_off_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = chat_models.make_tokenizer(FAMILIES["thinking"])
    with caplog.at_level("INFO", logger="ghosttrack"):
        chat.require_template(tokenizer, "tiny")
    assert "enable_thinking: false" in caplog.text
    assert chat.render(tokenizer, ["Who?"], "x").text.endswith("<think>\n\n</think>\n\n")


def test_a_template_with_a_date_gives_the_same_ids_on_any_day() -> None:
    tokenizer = chat_models.make_tokenizer(FAMILIES["llama"])
    assert "Today is 26 Jul 2024." in chat.render(tokenizer, ["Who?"], "x").text
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + EACH + LAST
    chat.require_template(tokenizer, "tiny")
    assert chat.render(tokenizer, ["Who?"], "x").text.startswith("2024-07-26user")


LAST = "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
EACH = "{% for message in messages %}{{ message['role'] + message['content'] }}{% endfor %}"
REFUSED = {
    "none": (None, r"tokenizer of tiny has none.*instruct model"),
    "empty": ("", r"tokenizer of tiny has none"),
    "several without default": (
        {"tool_use": EACH + LAST},
        r"several chat templates and none named default",
    ),
    "no syntax": ("{% for %}", r"cannot render tiny \(TemplateSyntaxError"),
    "raises": (
        "{{ raise_exception('only with tools') }}",
        r"cannot render tiny \(TemplateError: only with tools\)",
    ),
    "needs a system message": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        + EACH,
        r"system first",
    ),
    "needs an undefined value": (
        "{{ tools_list[0].name }}" + EACH,
        r"cannot render tiny \(UndefinedError",
    ),
    "today": (
        "{% set form = '%d' %}{{ strftime_now(form) }}" + EACH + LAST,
        r"today's date in a computed format",
    ),
    "leaves out a turn": (
        "{{ messages[0].content }}" + LAST,
        r"omits the message 'How many legs.*' of tiny",
    ),
    "opens no turn": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content }}{% endfor %}",
        r"writes '<.im_start.>assistant' before an answer but not at the end of a prompt",
    ),
    "thinks": (EACH + "{{ '<think>\n' }}", r"chain of thought"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_cannot_be_used_is_refused_in_one_line_with_the_setting_and_the_remedy(
    case: str,
) -> None:
    template, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        chat.require_template(plain_tokenizer(template), "tiny")
    assert "generation.prompt" in str(caught.value)
    assert "set generation.prompt: plain" in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_of_several_named_templates_the_default_one_is_used() -> None:
    tokenizer = plain_tokenizer(
        {"default": EACH + LAST, "tool_use": "{{ raise_exception('tools') }}"}
    )
    chat.require_template(tokenizer, "tiny")
    assert chat.render(tokenizer, ["Who?"], "x").text == "userWho?A:"

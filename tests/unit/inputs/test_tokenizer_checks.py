"""A tokenizer that differs from its source or does not fit its model is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_tokenizers
from hypothesis import given, settings, strategies
from small_tokenizers import KINDS, ROWS, edit

from ghosttrack.errors import UserError
from ghosttrack.inputs import fetching, models, tokenizer_checks
from ghosttrack.settings import DimensionSettings, SourceSettings

LOWERCASE = {"type": "Lowercase"}
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def fetch(source: Path, destination: Path) -> Any:
    """The tokenizer of the fetched model."""
    fetching.fetch(
        SourceSettings(kind="directory", id=str(source)),
        destination,
        dimensions=DimensionSettings(n_layers=1, d_model=8),
        seed=0,
    )
    return models.load_tokenizer(destination)


def raw_ids(directory: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = (
        Tokenizer.from_file(str(directory / "tokenizer.json"))
        .encode(text, add_special_tokens=False)
        .ids
    )
    return ids


def set_json(key: str, value: object) -> Callable[[Path], None]:
    return lambda folder: edit(
        folder / "tokenizer.json", lambda content: content.__setitem__(key, value)
    )


def set_class(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(
        folder / "tokenizer_config.json", lambda content: content.update(tokenizer_class=name)
    )


def in_order(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


# What makes the class of each kind disagree with tokenizer.json.
WRONG: dict[str, Callable[[Path], None]] = {
    "GPT-2": set_json("pre_tokenizer", in_order(DIGITS, BYTES)),
    "Qwen2": set_json("pre_tokenizer", BYTES),
    "Llama": set_json("normalizer", LOWERCASE),
    "Gemma": set_json("normalizer", LOWERCASE),
    "T5": set_json("normalizer", LOWERCASE),
    "BERT": set_json("normalizer", None),
    "words": set_class("GPT2Tokenizer"),
    "bytes": set_class("GemmaTokenizer"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_stored_with_the_ids_of_its_own_tokenizer_json(
    kind: str, tmp_path: Path
) -> None:
    small_tokenizers.save(kind, tmp_path / "source")
    stored = fetch(tmp_path / "source", tmp_path / "out")
    for text in small_tokenizers.TEXTS:
        assert stored(text, add_special_tokens=False)["input_ids"] == raw_ids(
            tmp_path / "source", text
        )


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", WRONG)
def test_a_class_that_disagrees_with_tokenizer_json_is_refused_and_the_remedy_works(
    kind: str, model_type: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    small_tokenizers.save(kind, source, model_type)
    WRONG[kind](source)
    with pytest.raises(
        UserError,
        match=r"(disagree on .* gives .* gives|stored .* cannot tokenize) .*tokenizer_class",
    ):
        fetch(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    set_class("PreTrainedTokenizerFast")(source)
    stored = fetch(source, tmp_path / "out")
    for text in small_tokenizers.TEXTS:
        assert stored(text, add_special_tokens=False)["input_ids"] == raw_ids(source, text)


def test_a_wrong_tokenizer_json_may_be_deleted_if_there_are_vocabulary_files(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("GPT-2", source)
    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (source / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (source / "merges.txt").write_text(
        "\n".join(" ".join(merge) for merge in model["merges"]), encoding="utf-8"
    )
    right = raw_ids(source, "The capital of France 123")
    WRONG["GPT-2"](source)
    with pytest.raises(
        UserError, match=r"to use vocab\.json and merges\.txt, delete tokenizer\.json"
    ):
        fetch(source, tmp_path / "out")
    (source / "tokenizer.json").unlink()
    assert fetch(source, tmp_path / "out")("The capital of France 123")["input_ids"] == right


def test_an_id_that_differs_is_found_although_no_probe_contains_its_token(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("words", source)

    def add_words(content: dict[str, Any]) -> None:
        content["model"]["vocab"] |= {"quokka": 10, "wombat": 11}

    edit(source / "tokenizer.json", add_words)
    fetch(source, tmp_path / "out")
    stored = models.load_tokenizer(tmp_path / "out")
    edit(
        source / "tokenizer.json",
        lambda content: content["model"]["vocab"].update(quokka=11, wombat=10),
    )
    with pytest.raises(
        UserError,
        match=r"disagree on the token '(quokka|wombat)': .* gives id 1[01], .* gives id 1[01]",
    ):
        tokenizer_checks.check(stored, tmp_path / "out", rows=ROWS, name="x", source=source)


@pytest.mark.parametrize("kind", KINDS)
def test_what_tokenizer_json_truncates_or_pads_is_compared_whole(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_tokenizers.save(kind, source)
    set_json(
        "truncation",
        {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
    )(source)
    stored = fetch(source, tmp_path / "out")
    assert len(stored("The capital of France is Paris.", add_special_tokens=False)["input_ids"]) > 3


def add_token(content: str, number: int, special: bool) -> Callable[[Path], None]:
    about = {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
    }
    token = {**about, "normalized": False, "special": special}
    return lambda folder: edit(
        folder / "tokenizer.json", lambda whole: whole["added_tokens"].append(token)
    )


def add_to_model(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda whole: whole["model"]["vocab"].update({"beyond": 420}))


def name_bos(folder: Path) -> None:
    add_token("<begin>", 10**3, special=True)(folder)
    edit(folder / "tokenizer_config.json", lambda content: content.update(bos_token="<begin>"))


def add_special_to_model(folder: Path) -> None:
    add_to_model(folder)
    edit(folder / "tokenizer_config.json", lambda content: content.update(pad_token="beyond"))


@pytest.mark.parametrize(
    ("change", "token"),
    [
        (add_token("<new>", 10**3, special=False), "<new>"),
        (add_to_model, "beyond"),
        (name_bos, "<begin>"),
        (add_special_to_model, "beyond"),
    ],
    ids=[
        "ordinary token added",
        "token of the model part",
        "bos",
        "special token of the model part",
    ],
)
def test_a_token_that_can_be_used_lies_inside_the_embedding(
    change: Callable[[Path], None], token: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("words", source)
    change(source)
    number = models.tokenizer_in(source).convert_tokens_to_ids(token)
    small_tokenizers.save_model(source, rows=number)
    with pytest.raises(
        UserError,
        match=rf"token '{token}' has the id {number}, but the embedding has {number} rows",
    ):
        fetch(source, tmp_path / "out")
    small_tokenizers.save_model(source, rows=number + 1)  # the remedy: resize_token_embeddings
    fetch(source, tmp_path / "out")


def test_a_special_token_that_no_text_produces_may_lie_beyond_the_embedding(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("bytes", source)
    number = len(models.tokenizer_in(source))
    add_token("<|reserved|>", number, special=True)(source)
    small_tokenizers.save_model(source, rows=number)
    stored = fetch(source, tmp_path / "out")
    assert stored.convert_tokens_to_ids("<|reserved|>") == number
    ids = stored("a <|reserved|> b", add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    assert max(ids) < number


def split_at_spaces(folder: Path) -> None:
    set_json("pre_tokenizer", {"type": "WhitespaceSplit"})(folder)


def unknown_is_bos(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        lambda content: content.update(bos_token="<unk>", eos_token="<unk>"),
    )


def prepend_unknown_special(folder: Path) -> None:
    small_tokenizers.save("words", folder)
    split_at_spaces(folder)
    set_json("normalizer", {"type": "Prepend", "prepend": "Paris "})(folder)
    edit(folder / "tokenizer_config.json", lambda content: content.update(cls_token="Paris"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (split_at_spaces, "the text '<s>' gives the special token '<s>' .* Punctuation"),
        (unknown_is_bos, "gives the special token '<unk>' .* set another bos_token"),
        (prepend_unknown_special, "adds 'Paris' .*to 'a'"),
    ],
)
def test_no_text_contains_or_begins_with_a_special_token(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("words", source)
    change(source)
    with pytest.raises(UserError, match=message):
        fetch(source, tmp_path / "out")


def test_a_separator_in_a_unigram_vocabulary_is_refused_until_its_score_is_low(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("T5", source)

    def score(value: float) -> None:
        edit(
            source / "tokenizer.json",
            lambda content: content["model"]["vocab"].__setitem__(1, ["</s>", value]),
        )

    score(0.0)
    with pytest.raises(
        UserError, match=r"special token '</s>' .*score far below all others \(-1000000\)"
    ):
        fetch(source, tmp_path / "out")
    score(-1e6)
    fetch(source, tmp_path / "out")


def test_a_tokenizer_without_bos_and_eos_names_the_tokens_it_has_and_the_remedy_works(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("BERT", source)
    names = {"bos_token": None, "eos_token": None}
    edit(source / "tokenizer_config.json", lambda content: content.update(names))
    with pytest.raises(
        UserError,
        match=r"neither bos_token nor eos_token \(it has cls_token '\[CLS\]'.*set bos_token",
    ):
        fetch(source, tmp_path / "out")
    edit(source / "tokenizer_config.json", lambda content: content.update(bos_token="[CLS]"))
    assert models.separator(fetch(source, tmp_path / "out")) == 2


def drop(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"String": pattern}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_json("pre_tokenizer", in_order(drop("F"), BYTES)),
            "no token covers the character 'F' at 15",
        ),
        (
            set_json("normalizer", {"type": "Replace", "pattern": {"String": "o"}, "content": ""}),
            "the character 'o'",
        ),
        (
            set_json("pre_tokenizer", None),
            "no token covers",
        ),  # a byte-level vocabulary without unk drops the rest
    ],
)
def test_a_tokenizer_that_loses_characters_is_refused(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("bytes", source)
    change(source)
    with pytest.raises(
        UserError, match=f"offsets of its tokenizer are wrong for the text .*{message}"
    ):
        fetch(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("ranges", "fault"),
    [
        ([(0, 1), (1, 4)], "range 1..4 in a text of 3 characters"),
        ([(0, 2), (1, 1)], "range 1..1 after 0..2"),
        ([(1, 2), (0, 3)], "range 0..3 after 1..2"),
        ([(2, 1)], "range 2..1"),
        ([(-1, 1)], "range -1..1"),
        ([(0, 1), (2, 3)], "no token covers the character 'b' at 1"),
        ([], "no token covers the character 'a' at 0"),
    ],
)
def test_wrong_offsets_are_detected(ranges: list[tuple[int, int]], fault: str) -> None:
    found = tokenizer_checks._misplaced("abc", ranges) or tokenizer_checks._uncovered(
        "abc", ranges, normalized=True
    )
    assert found is not None
    assert fault in found


@pytest.mark.parametrize("ranges", [[(0, 1), (1, 3)], [(0, 1), (0, 1), (0, 3)], [(0, 3), (3, 3)]])
def test_tokens_of_one_character_may_share_its_range(ranges: list[tuple[int, int]]) -> None:
    assert tokenizer_checks._misplaced("abc", ranges) is None
    assert tokenizer_checks._uncovered("abc", ranges, normalized=False) is None


def test_only_a_normalizer_may_remove_combining_marks() -> None:
    ranges = [(0, 1), (2, 3)]
    assert tokenizer_checks._uncovered("e\u0301a", ranges, normalized=True) is None
    assert tokenizer_checks._uncovered("e\u0301a", ranges, normalized=False) is not None


def test_a_vocabulary_that_cannot_represent_every_text_gives_one_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("words", source)
    edit(source / "tokenizer.json", lambda content: content["model"].update(unk_token="<gone>"))
    with pytest.raises(UserError, match=r"cannot tokenize every text .* set unk_token"):
        fetch(source, tmp_path / "out")


def test_a_tokenizer_that_knows_no_word_of_a_simple_sentence_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("words", source)
    edit(
        source / "tokenizer.json",
        lambda content: content["model"].update(vocab={"<s>": 0, "<unk>": 1}),
    )
    with pytest.raises(UserError, match=r"knows no word of a simple sentence .*7 ids \[1, 1"):
        fetch(source, tmp_path / "out")


def test_a_token_special_in_one_file_only_is_decided_by_tokenizer_config(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_tokenizers.save("bytes", source)

    def ordinary(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token["special"] = False

    edit(source / "tokenizer.json", ordinary)
    stored = fetch(source, tmp_path / "out")
    ids = stored("a<s>b", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert stored.bos_token_id not in ids


def test_the_probes_contain_all_kinds_of_text_on_which_tokenizers_disagree() -> None:
    import unicodedata

    text = "".join(tokenizer_checks.PROBES)
    scripts = "LATIN CYRILLIC GREEK ARABIC HEBREW DEVANAGARI THAI CJK HIRAGANA KATAKANA HANGUL LIGATURE COMBINING EMOJI"
    names = " ".join(unicodedata.name(letter, "") for letter in text)
    assert [script for script in scripts.split() if script not in names] == []
    assert "" in tokenizer_checks.PROBES
    assert {"\t", "\n", "\u200d", "    ", "65535"} <= {
        part for part in ["\t", "\n", "\u200d", "    ", "65535"] if part in text
    }


def test_a_tokenizer_that_changes_when_saved_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2Tokenizer

    source = tmp_path / "source"
    small_tokenizers.save("GPT-2", source)
    model = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (source / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (source / "merges.txt").write_text(
        "\n".join(" ".join(merge) for merge in model["merges"]), encoding="utf-8"
    )
    (source / "tokenizer.json").unlink()
    save = GPT2Tokenizer.save_pretrained

    def save_lowercase(tokenizer: Any, folder: Path) -> None:
        save(tokenizer, folder)
        set_json("normalizer", LOWERCASE)(folder)
        set_class("PreTrainedTokenizerFast")(folder)

    monkeypatch.setattr(GPT2Tokenizer, "save_pretrained", save_lowercase)
    with pytest.raises(
        UserError,
        match=r"the stored TokenizersBackend gives .* GPT2Tokenizer of transformers gives",
    ):
        fetch(source, tmp_path / "out")


def test_without_a_source_the_stored_tokenizer_json_is_compared(tmp_path: Path) -> None:
    small_tokenizers.save("Llama", tmp_path / "source")
    fetch(tmp_path / "source", tmp_path / "out")
    shutil.rmtree(tmp_path / "source")
    edit(
        tmp_path / "out" / "tokenizer_config.json",
        lambda content: content.update(tokenizer_class="Qwen2Tokenizer"),
    )
    (tmp_path / "out" / "source.json").unlink()
    with pytest.raises(UserError, match=r"the stored tokenizer\.json gives"):
        tokenizer_checks.check(
            models.load_tokenizer(tmp_path / "out"),
            tmp_path / "out",
            rows=ROWS,
            name="x",
            source=None,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_an_accepted_tokenizer_agrees_with_its_tokenizer_json_on_any_text(
    kind: str, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    source = tmp_path / "source"
    small_tokenizers.save(kind, source)
    stored = fetch(source, tmp_path / "out")
    raw = Tokenizer.from_file(str(source / "tokenizer.json"))
    raw.encode_special_tokens = True

    @settings(max_examples=60, deadline=None, database=None)
    @given(strategies.text(max_size=20))
    def agrees(text: str) -> None:
        coded = stored(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        assert coded["input_ids"] == raw.encode(text, add_special_tokens=False).ids
        assert stored.bos_token_id not in coded["input_ids"]
        assert max(coded["input_ids"], default=0) < ROWS
        assert tokenizer_checks._misplaced(text, coded["offset_mapping"]) is None

    agrees()

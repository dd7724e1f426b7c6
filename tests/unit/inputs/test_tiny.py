"""The random test model is deterministic, and its tokenizer represents every text."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ghosttrack.facts import fact_text
from ghosttrack.inputs import fetching, models, tiny
from ghosttrack.settings import DimensionSettings, SourceSettings

DIMENSIONS = DimensionSettings(n_layers=4, d_model=64)


@pytest.fixture(autouse=True)
def _few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    def documents(_seed: int) -> Iterator[str]:
        return iter(
            [
                "The capital of Freedonia is Fredville.",
                "A dog is an animal that barks.",
                "The capital is here.",
            ]
        )

    monkeypatch.setattr(fact_text, "corpus_documents", documents)
    monkeypatch.setattr(fact_text, "statement_documents", documents)


def make(folder: Path, seed: int = 0) -> Path:
    fetching.fetch(SourceSettings(kind="random"), folder, dimensions=DIMENSIONS, seed=seed)
    return folder


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    first, second, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", seed=1)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    assert (first / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_building_the_model_does_not_depend_on_torchs_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = (make(tmp_path / "a") / "model.safetensors").read_bytes()
    torch.manual_seed(6)
    assert (make(tmp_path / "b") / "model.safetensors").read_bytes() == first


def test_the_weights_are_the_documented_ones(tmp_path: Path) -> None:
    model = models.load_model(make(tmp_path / "a"))
    parameters = dict(model.named_parameters())
    assert len(models.blocks(model)) == 4
    assert torch.equal(parameters["transformer.h.1.ln_1.weight"], torch.ones(64))
    assert torch.equal(parameters["transformer.h.1.attn.c_attn.bias"], torch.zeros(192))
    assert parameters["transformer.wte.weight"].std().item() == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "The capital of Freedonia is Zürich.",
        "naïve ▁ text\twith\n\ntabs",
        "日本語 🙂",
        "x" * 5000,
        "<|endoftext|> quoted",
        " leading",
        "##a ####",
    ],
)
def test_any_text_is_spelt_without_an_unknown_token_and_comes_back_whole(text: str) -> None:
    tokenizer = tiny.build_tokenizer()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_known_words_are_one_token_each_and_spans_follow_the_text(tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(make(tmp_path / "a"))
    text = "The capital of Freedonia is Fredville."
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert [text[start:end].strip() for start, end in encoded["offset_mapping"]] == [
        "The",
        "capital",
        "of",
        "Freedonia",
        "is",
        "Fredville",
        ".",
    ]
    assert models.separator(tokenizer) == tokenizer.convert_tokens_to_ids(tiny.SEPARATOR) == 0

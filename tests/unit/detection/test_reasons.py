"""Features are named only if they are sparse and their contexts have something in common."""

from pathlib import Path

import pandas as pd
import pytest
import run_fakes

from ghosttrack.detection.reasons import CONTEXTS, LayerMeanings

CAPITALS = [("The capital of France is", "Paris"), ("The capital of Peru is", "Lima")] + [
    (f"The capital of country{number} is", f"City{number}") for number in range(4)
]


def table(rows: list[list[tuple[str, str, str]]], density: float = 0.01) -> pd.DataFrame:
    """The table of a layer: planted features before many features of random words."""
    others = [
        [
            (f"w{number}x{each} and so", f"t{number}y{each}", f"v{number}z{each}")
            for each in range(6)
        ]
        for number in range(60)
    ]
    everything = rows + others
    count = 0
    numbered = []
    for contexts in everything:
        numbered.append(list(range(count, count + len(contexts))))
        count += len(contexts)
    return pd.DataFrame(
        {
            "feature": range(len(everything)),
            "density": density,
            "output_text": [[" more", " less"]] * len(everything),
            "context_row": numbered,
            "context_document": numbered,
            **{
                f"context_{name}": [[each[part] for each in contexts] for contexts in everything]
                for part, name in enumerate(("before", "token", "after"))
            },
        }
    )


def test_a_feature_of_one_token_is_named_by_it_and_a_word_ending_as_one() -> None:
    token = [(f"word{number} is", " Europe", f"/x{number}") for number in range(6)]
    ending = [(f"stem{number}", "ting", f" x{number}") for number in range(6)]
    layer = LayerMeanings(table([token, ending]))
    assert layer.of(0).name == "Europe"  # type: ignore[union-attr]
    assert layer.of(1).name == "-ting"  # type: ignore[union-attr]


def test_a_feature_of_different_tokens_is_named_by_the_words_around_them() -> None:
    layer = LayerMeanings(table([[(before, token, ".") for before, token in CAPITALS]]))
    meaning = layer.of(0)
    assert meaning is not None
    assert meaning.name == "near capital, of" or "capital" in meaning.name
    assert meaning.contexts[0] == ("The capital of France is", "Paris", ".")
    assert len(meaning.contexts) == CONTEXTS
    assert meaning.promotes == ("more", "less")


def test_features_of_contexts_without_anything_in_common_have_no_name() -> None:
    layer = LayerMeanings(table([]))
    named = [layer.of(number) for number in range(60)]
    assert sum(meaning is not None for meaning in named) <= 3  # one in a hundred is named by chance


def test_a_dense_feature_has_no_name_whatever_its_contexts() -> None:
    token = [(f"word{number} is", " Europe", f"/x{number}") for number in range(6)]
    assert LayerMeanings(table([token], density=0.1)).of(0) is not None
    assert LayerMeanings(table([token], density=0.11)).of(0) is None


def test_contexts_of_one_document_have_nothing_in_common_to_show() -> None:
    token = [(f"word{number} is", " Europe", f"/x{number}") for number in range(6)]
    rows = table([token])
    rows["context_document"] = [[7] * len(each) for each in rows["context_row"]]
    assert LayerMeanings(rows).of(0) is None


def test_a_feature_that_is_never_active_has_no_name() -> None:
    assert LayerMeanings(table([[]])).of(0) is None


@pytest.mark.parametrize("separator", ["<|im_start|>", "<s>", "<|endoftext|>"])
def test_separators_of_documents_are_neither_shown_nor_something_in_common(separator: str) -> None:
    rows = [
        [(f"{separator}a{n}b{e}", f"t{n}y{e}", f"v{n}z{e}") for e in range(6)] for n in range(9)
    ]
    layer = LayerMeanings(table(rows))
    assert sum(layer.of(number) is not None for number in range(9)) <= 1
    token = [(f"{separator}word{number} is", " Europe", "") for number in range(6)]
    assert LayerMeanings(table([token])).of(0).contexts[0][0] == "word0 is"  # type: ignore[union-attr]


def test_the_planted_features_of_the_fake_run_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    run_fakes.feature_table(1).to_parquet(path)
    layer = LayerMeanings(pd.read_parquet(path))
    named = [number for number in range(run_fakes.D_SAE) if layer.of(number)]
    assert named == [n for n in range(run_fakes.D_SAE) if n % 7 > run_fakes.VAGUE]

"""The feature dictionary: known answers on small stores, and the script on a model of its own."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import small_models
import torch
from sae_fakes import MemoryRows

from ghosttrack.activations import extraction
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus
from ghosttrack.runtime import files
from ghosttrack.sae import firing, logit_lens
from ghosttrack.sae import model as sae_model
from ghosttrack.sae.model import Sae
from ghosttrack.settings import CorpusSettings
from sae import describe_features


def identity(d: int, k: int | None = None) -> Sae:
    """Features are the coordinates above 0, so codes are whole numbers where the rows are: many ties."""
    eye = torch.eye(d)
    return Sae(eye, torch.zeros(d), eye.clone(), torch.zeros(d), torch.zeros(d), k=k)


def rows_and_tokens(rows: int, d: int, vocabulary: int) -> tuple[MemoryRows, npt.NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    values = rng.integers(-6, 4, (rows, d)).astype(np.float32)
    values[:, 2] = -1.0  # dead
    values[:, 3] = np.where(np.arange(rows) == 77, 2.0, -1.0)  # fires once
    excluded = rng.random(rows) < 0.1
    excluded[77] = False
    return MemoryRows(values, excluded), rng.integers(0, vocabulary, rows).astype(np.int32)


def expected(
    store: MemoryRows, tokens: npt.NDArray[np.int32], feature: int, count: int
) -> tuple[list[Any], list[Any]]:
    """Strongest rows and most characteristic tokens of one feature, one row at a time."""
    entries: list[tuple[float, int]] = []
    sums: dict[int, float] = {}
    seen: dict[int, int] = {}
    for row in range(store.rows):
        if store.excluded[row]:
            continue
        token, activation = int(tokens[row]), float(store.values[row, feature])
        seen[token] = seen.get(token, 0) + 1
        if activation > 0:
            entries.append((-activation, row))
            sums[token] = sums.get(token, 0.0) + activation
    ranked = sorted((-total / (seen[token] + 2), token, total) for token, total in sums.items())
    return sorted(entries)[:count], ranked[:count]


@pytest.mark.parametrize("vocabulary", [30, 5000])
def test_one_pass_finds_what_looking_at_every_row_finds(vocabulary: int) -> None:
    store, tokens = rows_and_tokens(9000, 6, vocabulary)  # three blocks
    kept = ~store.excluded
    found = firing.collect(identity(6), store, tokens, 7)
    codes = np.maximum(store.values[kept].astype(np.float64), 0)
    assert found.rows == kept.sum()
    assert found.fired.tolist() == (codes > 0).sum(0).tolist()
    assert found.total.tolist() == codes.sum(0).tolist()
    for feature in range(6):
        rows, ranked = expected(store, tokens, feature, 7)
        mine = found.rows_of.feature == feature
        assert [
            (-a, r)
            for a, r in zip(found.rows_of.activation[mine], found.rows_of.row[mine], strict=True)
        ] == rows
        if vocabulary < firing.TOKENS_IN_VIEW:
            mine = found.tokens_of.feature == feature
            best = zip(*(values[mine] for values in found.tokens_of[1:]), strict=True)
            assert [(-score, token, total) for token, total, score in best] == ranked
    assert (found.rows_of.feature == 2).sum() == (found.tokens_of.feature == 2).sum() == 0
    assert found.rows_of.row[found.rows_of.feature == 3].tolist() == [77]


def test_what_stays_in_view_is_bounded_and_holds_the_tokens_that_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(firing, "TOKENS_IN_VIEW", 16)
    rng = np.random.default_rng(1)
    rows = 20_000
    tokens = rng.integers(0, 1000, rows).astype(np.int32)
    values = np.where(tokens < 5, 50.0 - tokens, rng.random(rows))[:, None].astype(np.float32)
    largest = 0
    added = firing._added

    def watched(*arguments: Any) -> Any:
        nonlocal largest
        found = added(*arguments)
        largest = max(largest, len(found[0]))
        return found

    monkeypatch.setattr(firing, "_added", watched)
    found = firing.collect(identity(1), MemoryRows(values), tokens, 5)
    totals = dict(zip(found.tokens_of.token.tolist(), found.tokens_of.total.tolist(), strict=True))
    assert totals == {token: (tokens == token).sum() * (50.0 - token) for token in range(5)}
    assert largest == 16


def test_topk_fires_only_where_it_is_among_the_largest() -> None:
    store = MemoryRows(np.array([[3.0, 2.0, 1.0], [1.0, 5.0, 4.0]]))
    found = firing.collect(identity(3, k=1), store, np.array([4, 9], dtype=np.int32), 3)
    assert found.fired.tolist() == [1, 1, 0]
    assert found.tokens_of.token.tolist() == [4, 9]


def test_the_nearest_features_are_the_others_with_the_highest_cosine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logit_lens, "_BLOCK", 4)
    rows = torch.randn(11, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(
        1, 12
    ).unsqueeze(1)
    found = logit_lens.nearest(rows, 3)
    for feature in range(11):
        cosine = torch.nn.functional.cosine_similarity(rows[feature], rows, dim=1)
        others = sorted(
            (each for each in range(11) if each != feature), key=lambda each: -float(cosine[each])
        )
        assert found.entry[feature].tolist() == others[:3]
        assert found.value[feature].tolist() == pytest.approx(cosine[others[:3]].tolist(), abs=1e-6)
    assert logit_lens.nearest(rows[:2], 10).entry.tolist() == [[1], [0]]


WORDS = [
    "The capital of France is Paris",
    "São Paulo is a city",
    "The atomic number of gold is 79",
    "Q: Who? A: 東京",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its held-out text, the activations of its layer 1, and an autoencoder."""
    folder: Path = tmp_path_factory.mktemp("home")
    model, tokenizer = small_models.make_model("gpt2"), small_models.make_tokenizer()
    small_models.save(model, tokenizer, folder / "model")
    about = {
        "source": "words",
        "tokenizer_sha256": files.sha256_file(folder / "model/tokenizer.json"),
    }
    texts = (f"{WORDS[number % 4]} {number}" for number in range(4000))
    corpus.build(
        [corpus.Stream("words", texts, 1.0)],
        tokenizer,
        corpus.SplitPaths(folder / "train.zarr", folder / "train.json"),
        corpus.SplitPaths(folder / "heldout.zarr", folder / "heldout.json"),
        CorpusSettings(tokens=512, heldout_tokens=512, context=32),
        about,
    )
    tokens = corpus.read_tokens(folder / "heldout.zarr", folder / "heldout.json").tokens
    extraction.extract_contexts(
        model,
        extraction.origin(folder / "model"),
        tokens,
        [1],
        [extraction.StoreFiles(folder / "layer_01.zarr", folder / "layer_01.json")],
        extraction.Extraction("resid_post", 4),
    )
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    threshold = torch.full((24,), 0.5)
    threshold[5] = 1e6  # dead
    trained = Sae(W_dec.T.contiguous(), torch.zeros(24), W_dec, torch.zeros(16), threshold)
    sae_model.save(
        trained, folder / "sae.safetensors", folder / "cfg.json", hook_name="", model_name="tiny"
    )
    small_models.save_check(folder)
    return folder


def arguments(folder: Path, features: Path) -> dict[str, Any]:
    return {
        "weights": folder / "sae.safetensors",
        "cfg": folder / "cfg.json",
        "store": folder / "layer_01.zarr",
        "manifest": folder / "layer_01.json",
        "heldout": folder / "heldout.zarr",
        "heldout_manifest": folder / "heldout.json",
        "model_weights": folder / "model" / "model.safetensors",
        "check": folder / "model_check.json",
        "features": features,
        "layer": 1,
        "threads": 1,
    }


def test_the_script_describes_every_feature_and_twice_with_the_same_bytes(
    home: Path, tmp_path: Path
) -> None:
    for name in ("one.parquet", "two.parquet"):
        describe_features.main(**arguments(home, tmp_path / name))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    table = pd.read_parquet(tmp_path / "one.parquet")
    assert table["feature"].tolist() == list(range(24))
    assert table.attrs["layer"] == 1
    assert table.attrs["rows"] == 512 - 16  # the first position of each context is left out
    tokens = corpus.read_tokens(home / "heldout.zarr", home / "heldout.json")
    tokenizer = small_models.make_tokenizer()
    for row in table.itertuples():
        assert len(row.nearest) == len(row.output_token) == len(row.output_text) == 10
        shown = len(row.context_row)
        assert shown == min(10, round(row.density * table.attrs["rows"]))
        for at in range(shown):
            origin = tokens.origin(int(row.context_row[at]))
            assert origin.position > 0
            assert origin.document == row.context_document[at]
            piece = tokenizer.decode([origin.token])
            # A token that is part of a character is shown as this character.
            assert row.context_token[at] == piece or "\ufffd" in piece
        assert sorted(row.context_activation, reverse=True) == list(row.context_activation)
        if shown:
            assert row.activation_max == row.context_activation[0] >= row.activation_mean > 0.5
            assert all(0 < share <= 1.0001 for share in row.top_share)
            assert all(mean > 0 for mean in row.top_mean)
    dead = table.loc[5]
    assert (dead["density"], dead["activation_mean"], dead["activation_max"]) == (0, 0, 0)
    assert all(len(dead[name]) == 0 for name in table if name.startswith(("top_", "context_")))


def test_features_of_a_model_with_further_layers_in_its_head_have_no_output_tokens(
    home: Path, tmp_path: Path
) -> None:
    about = files.read_json(home / "model_check.json")
    files.write_json(
        tmp_path / "check.json", {**about, "limits": {**about["limits"], "named": False}}
    )
    given = arguments(home, tmp_path / "features.parquet")
    describe_features.main(**{**given, "check": tmp_path / "check.json"})
    assert all(
        len(row) == 0 for row in pd.read_parquet(tmp_path / "features.parquet")["output_token"]
    )


def test_another_model_corpus_tokenizer_or_layer_is_refused(home: Path, tmp_path: Path) -> None:
    given = arguments(home, tmp_path / "features.parquet")
    other = Path(shutil.copytree(home / "model", tmp_path / "model"))
    about = files.read_json(other / "source.json")
    files.write_json(other / "source.json", {**about, "weights_sha256": "0" * 64})
    with pytest.raises(
        UserError, match=r"another run: its weights_sha256 is .*, this job expects 000"
    ):
        describe_features.main(**{**given, "model_weights": other / "model.safetensors"})
    swapped = {"heldout": home / "train.zarr", "heldout_manifest": home / "train.json"}
    with pytest.raises(UserError, match="another run: its tokens_sha256 is"):
        describe_features.main(**{**given, **swapped})
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"was not made with .*tokenizer\.json"):
        describe_features.main(**{**given, "model_weights": other / "model.safetensors"})
    with pytest.raises(UserError, match="its layer is 1, this job expects 2"):
        describe_features.main(**{**given, "layer": 2})
    assert not (tmp_path / "features.parquet").exists()


def test_an_autoencoder_of_another_width_is_refused(home: Path, tmp_path: Path) -> None:
    store, manifest = tmp_path / "wide.zarr", tmp_path / "wide.json"
    content = files.read_json(home / "layer_01.json")
    header = Header(
        content["model"], content["weights_sha256"], 1, "resid_post", 32, content["tokens_sha256"]
    )
    with StoreWriter(store, manifest, header, rows=512, d_model=8) as writer:
        writer.append(to_block(np.ones((512, 8), dtype=np.float32)))
    given = arguments(home, tmp_path / "features.parquet")
    with pytest.raises(UserError, match="8 dimensions, the autoencoder 16"):
        describe_features.main(**{**given, "store": store, "manifest": manifest})

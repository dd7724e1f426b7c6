"""Extraction from packed contexts: correct values and rows for every batch and shard."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import small_models
import torch

from ghosttrack.activations import extraction, hooks, reader, store, writer
from ghosttrack.activations.extraction import ModelIdentity, StoreFiles
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError
from ghosttrack.runtime.files import read_json

ORIGIN = ModelIdentity("tiny", "weights")
CONTEXTS, CONTEXT = 7, 12


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return small_models.make_model(request.param)


@pytest.fixture
def tokens() -> npt.NDArray[np.int32]:
    found = np.random.default_rng(0).integers(1, 400, (CONTEXTS, CONTEXT), dtype=np.int32)
    found[:, 0] = 0
    return found


def targets(folder: Path, layers: Sequence[int], shard: int = 0) -> list[StoreFiles]:
    names = [folder / f"layer_{layer:02d}" / f"shard_{shard:04d}" for layer in layers]
    return [StoreFiles(name.with_suffix(".zarr"), name.with_suffix(".json")) for name in names]


def extract(
    folder: Path, model: Any, tokens: npt.NDArray[np.int32], layers: list[int], **options: Any
) -> list[ActivationStore]:
    made = targets(folder, layers)
    wanted = extraction.Extraction(**{"site": "resid_post", "batch": 3, **options})
    extraction.extract_contexts(model, ORIGIN, tokens, layers, made, wanted)
    return [ActivationStore.open([one.store], [one.manifest]) for one in made]


def hidden_states(model: Any, tokens: npt.NDArray[np.int32]) -> list[npt.NDArray[np.float32]]:
    with torch.no_grad():
        found = model(
            torch.from_numpy(tokens.astype(np.int64)), output_hidden_states=True
        ).hidden_states
    return [state.flatten(0, 1).numpy() for state in found]


def count_hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_stores_hold_the_hidden_states_of_every_layer_but_the_last(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    stores = extract(tmp_path, model, tokens, [0, 1, 2, 3])
    expected = hidden_states(model, tokens)
    for layer in (0, 1, 2):
        np.testing.assert_allclose(stores[layer].read(), expected[layer + 1], rtol=2e-3, atol=1e-3)
        assert stores[layer].layer == layer
    # transformers' last hidden state is after the final norm: not the output of the last block.
    assert np.abs(stores[3].read() - expected[4]).max() > 0.1
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    np.testing.assert_allclose(
        norm(torch.from_numpy(stores[3].read()).float()).numpy(), expected[4], atol=1e-2
    )


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
def test_other_sites_are_the_two_additions_to_the_residual_stream(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32], site: str
) -> None:
    other = {"mlp_out": "attn_out", "attn_out": "mlp_out"}[site]
    one, two = (
        extract(tmp_path / name, model, tokens, [1], site=name)[0] for name in (site, other)
    )
    assert (one.site, two.site) == (site, other)
    states = hidden_states(model, tokens)
    np.testing.assert_allclose(
        one.read() + two.read().astype(np.float32), states[2] - states[1], rtol=1e-2, atol=1e-2
    )


def test_nothing_above_the_highest_layer_is_computed(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    ran: list[int] = []
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    model.get_output_embeddings().register_forward_pre_hook(lambda *_: ran.append(99))
    extract(tmp_path, model, tokens, [0, 2], batch=CONTEXTS)
    assert ran == [0, 1, 2]


def test_the_model_works_as_before_after_extraction(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    before, hooks = hidden_states(model, tokens), count_hooks(model)
    extract(tmp_path, model, tokens, [0, 1])
    for one, other in zip(before, hidden_states(model, tokens), strict=True):
        np.testing.assert_array_equal(one, other)
    assert count_hooks(model) == hooks


def test_the_batch_size_changes_only_rounding(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    one, other = (
        extract(tmp_path / str(batch), model, tokens, [2], batch=batch)[0].read()
        for batch in (1, 5)
    )
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-3)


def test_two_runs_write_the_same_bytes(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    for name in ("x", "y"):
        extract(tmp_path / name, model, tokens, [0, 3])
    for path in (tmp_path / "x").rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "y" / path.relative_to(tmp_path / "x")).read_bytes()
            )


def test_shards_together_hold_the_whole_corpus(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    whole = extract(tmp_path / "whole", model, tokens, [1], batch=3)[0]
    made = []
    for shard, first in enumerate((0, 3, 6)):
        made += targets(tmp_path, [1], shard)
        wanted = extraction.Extraction("resid_post", batch=3, first=first, contexts=3)
        extraction.extract_contexts(model, ORIGIN, tokens, [1], made[-1:], wanted)
    joined = ActivationStore.open([one.store for one in made], [one.manifest for one in made])
    assert joined.rows == tokens.size
    np.testing.assert_allclose(joined.read(), whole.read(), rtol=2e-3, atol=1e-3)
    assert joined.excluded[::CONTEXT].all()
    with pytest.raises(UserError, match="ends at row 72, the layer has 84"):
        ActivationStore.open([one.store for one in made[:2]], [one.manifest for one in made[:2]])


def test_stores_name_the_model_the_layer_and_the_tokens(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    one = extract(tmp_path / "a", model, tokens, [2])[0]
    assert one.attributes == {
        "model": "tiny",
        "weights_sha256": "weights",
        "layer": 2,
        "site": "resid_post",
        "context": CONTEXT,
        "tokens_sha256": extraction.tokens_sha256(tokens),
        "storage": "fp16",
        "model_precision": "float32",
        "d_model": small_models.WIDTH,
        "total_rows": tokens.size,
    }
    tokens[0, 1] += 1
    assert extraction.tokens_sha256(tokens) != one.attributes["tokens_sha256"]


def test_a_block_holds_the_clipped_values_and_the_norms_of_its_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) * 3e4
    rows[7, 3], rows[9, :2] = 65_504.0, 1e5
    block = store.to_block(torch.from_numpy(rows))
    np.testing.assert_array_equal(block.values, np.clip(rows, -65_504, 65_504).astype(np.float16))
    np.testing.assert_allclose(block.norms, np.linalg.norm(rows, axis=1), rtol=1e-6)
    beyond = np.abs(rows) > 65_504
    clipped = [(row, beyond[row].sum(), np.abs(rows[row]).max()) for row in range(50)]
    np.testing.assert_array_equal(block.clipped, [line for line in clipped if line[1]])
    assert block.exact is None
    small = store.to_block(rows / 1e3, exact=True)
    assert len(small.clipped) == 0
    np.testing.assert_array_equal(small.exact, rows / 1e3)


def test_a_model_with_damaged_weights_publishes_nothing(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    model.get_input_embeddings().weight[tokens[4, 5]] = torch.nan
    with pytest.raises(UserError, match=r"resid_post of layer 0: row \d+ holds NaN"):
        extract(tmp_path, model, tokens, [0, 1])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_activations_that_a_store_cannot_hold_are_refused_with_their_layer(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32]
) -> None:
    model.get_input_embeddings().weight[:, 3] = 90_000.0
    with pytest.raises(
        UserError,
        match=r"resid_post of layer 0: \d+ of \d+ rows hold values beyond float16.*is (89|90),\d\d\d",
    ):
        extract(tmp_path, model, tokens, [0, 1])
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("layers", [[], [0, 4], [1, 0], [-1]])
def test_layers_that_the_model_does_not_have_are_refused(tmp_path: Path, layers: list[int]) -> None:
    with pytest.raises(UserError, match=r"activations\.layers: .* within 0\.\.3"):
        extract(tmp_path, small_models.make_model("gpt2"), np.zeros((2, 5), dtype=np.int32), layers)


def test_contexts_longer_than_the_model_takes_or_beyond_the_corpus_are_refused(
    tmp_path: Path,
) -> None:
    model = small_models.make_model("gpt2")
    with pytest.raises(
        UserError, match=r"corpus\.context: 65 tokens are more than the model takes \(64\)"
    ):
        extract(tmp_path, model, np.zeros((2, 65), dtype=np.int32), [0])
    with pytest.raises(UserError, match="the corpus has 2 contexts, this job starts at context 2"):
        extract(tmp_path, model, np.zeros((2, 5), dtype=np.int32), [0], first=2)


def test_the_origin_of_a_model_without_an_id_is_its_kind(tmp_path: Path) -> None:
    small_models.save(small_models.make_model("gpt2"), small_models.make_tokenizer(), tmp_path)
    assert extraction.model_identity(tmp_path) == ModelIdentity(
        "random", read_json(tmp_path / "source.json")["weights_sha256"]
    )


def test_the_scripts_write_shards_that_join_and_the_held_out_stores(
    tmp_path: Path, tokens: npt.NDArray[np.int32], monkeypatch: pytest.MonkeyPatch
) -> None:
    from extract import extract_activations, extract_heldout
    from ghosttrack.inputs import corpus

    monkeypatch.setattr(corpus, "read_tokens", lambda *_: corpus.PackedTokens(tokens, tokens, {}))
    small_models.save(
        small_models.make_model("llama"), small_models.make_tokenizer(), tmp_path / "model"
    )
    common: dict[str, Any] = {
        "weights": tmp_path / "model" / "model.safetensors",
        "check": small_models.save_check(tmp_path),
        "site": "resid_post",
        "batch": 2,
        "threads": 1,
        "code": "",
    }
    made = [targets(tmp_path / "train", [0, 2], shard) for shard in (0, 1)]
    for shard in (0, 1):
        stores, manifests = (
            [one.store for one in made[shard]],
            [one.manifest for one in made[shard]],
        )
        extract_activations.main(
            train=tmp_path,
            train_manifest=tmp_path,
            stores=stores,
            manifests=manifests,
            contexts_per_shard=4,
            storage="fp16",
            shard=shard,
            **common,
        )
    heldout = targets(tmp_path / "heldout", [0, 2])
    stores, manifests = [one.store for one in heldout], [one.manifest for one in heldout]
    extract_heldout.main(
        heldout=tmp_path, heldout_manifest=tmp_path, stores=stores, manifests=manifests, **common
    )
    for place in (0, 1):
        joined = ActivationStore.open(
            [shard[place].store for shard in made], [shard[place].manifest for shard in made]
        )
        whole = ActivationStore.open([heldout[place].store], [heldout[place].manifest])
        np.testing.assert_allclose(joined.read(), whole.read(), rtol=2e-3, atol=1e-3)
        assert joined.attributes == whole.attributes
    # Snakemake writes a file of its own into output folders.
    (stores[0] / ".snakemake_timestamp").touch()
    ActivationStore.open(stores[:1], manifests[:1]).verify()


# ---- resuming
@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shard files of 24 rows in chunks of 12, so that a short text fills many."""
    for module in (writer, reader, store):
        monkeypatch.setattr(module, "CHUNK_ROWS", 12)
        if hasattr(module, "CHUNKS_PER_SHARD"):
            monkeypatch.setattr(module, "CHUNKS_PER_SHARD", 2)
    monkeypatch.setattr(writer, "SHARD_ROWS", 24)


def content_of(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("storage", ["fp16", "int8s"])
# Passes of 36, 36 and 12 rows: after one pass, one file of 24 rows is complete and the pass is
# repeated; after two, three files are complete.
@pytest.mark.parametrize(("passes", "repeated"), [(1, 3), (2, 1)])
def test_a_failed_job_is_resumed_and_gives_the_same_bytes(
    storage: str,
    passes: int,
    repeated: int,
    tmp_path: Path,
    model: Any,
    tokens: npt.NDArray[np.int32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract(tmp_path / "whole", model, tokens, [0, 2], storage=storage)
    run, allowed, count = hooks.run_to_highest, passes, 0

    def limited(*arguments: Any) -> None:
        nonlocal count
        if count == allowed:
            raise InterruptedError
        count += 1
        run(*arguments)

    monkeypatch.setattr(extraction, "run_to_highest", limited)
    with pytest.raises(InterruptedError):
        extract(tmp_path / "cut", model, tokens, [0, 2], storage=storage)
    assert not list((tmp_path / "cut").rglob("shard_0000.json"))
    allowed, count = 9, 0
    extract(tmp_path / "cut", model, tokens, [0, 2], storage=storage)
    assert count == repeated
    assert content_of(tmp_path / "cut") == content_of(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_write_that_fails_in_the_background_stops_the_job(
    tmp_path: Path, model: Any, tokens: npt.NDArray[np.int32], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.StoreWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        extract(tmp_path, model, tokens, [0, 2])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert count_hooks(model) == 0

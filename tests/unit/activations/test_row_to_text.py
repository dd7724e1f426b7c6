"""From a row of a store, opened with xarray, back to its document, its position and its text; in both storage modes."""

from pathlib import Path

import numpy as np
import pytest
import small_models
import torch

from ghosttrack.activations import extraction
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Storage
from ghosttrack.inputs import corpus
from ghosttrack.inputs.token_text import TokenText, window_of
from ghosttrack.settings import CorpusSettings

CONTEXT, LAYER = 32, 2
TEXTS = [
    f"The capital of France is Paris. Who says so? Ada said it {number} times."
    for number in range(120)
]
DIMENSIONS = {
    "fp16": {"resid_post": ("row", "channel"), "massive": ("row",)},
    "int8s": {
        "resid_post": ("row", "channel"),
        "massive": ("row",),
        "row_scale": ("row",),
        "mean": ("chunk", "channel"),
        "deviation": ("chunk", "channel"),
        "outlier_rows": ("outlier",),
        "outliers": ("outlier", "channel"),
    },
}


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_any_row_that_xarray_opens_leads_back_to_document_position_and_text(
    storage: Storage, tmp_path: Path
) -> None:
    xarray = pytest.importorskip("xarray")
    tokenizer, model = small_models.make_tokenizer(), small_models.make_model("llama")
    train, heldout = (
        corpus.SplitPaths(tmp_path / f"{side}.zarr", tmp_path / f"{side}.json")
        for side in ("train", "heldout")
    )
    settings = CorpusSettings(tokens=2000, heldout_tokens=100, context=CONTEXT)
    corpus.build(
        [corpus.Stream("a", iter(TEXTS), 1.0)],
        tokenizer,
        train,
        heldout,
        settings,
        {"source": "test"},
    )
    packed = corpus.read_tokens(*train)
    target = extraction.StoreFiles(tmp_path / "layer_02.zarr", tmp_path / "layer_02.json")
    wanted = extraction.Extraction("resid_post", batch=4, storage=storage)
    extraction.extract_contexts(
        model, extraction.Origin("tiny", "weights"), packed.tokens, [LAYER], [target], wanted
    )

    with (
        xarray.open_zarr(target.store, consolidated=False) as rows,
        xarray.open_zarr(train.store, consolidated=False) as source,
    ):
        assert {name: rows[name].dims for name in rows} == DIMENSIONS[storage]
        assert rows.attrs["layer"] == LAYER
        assert rows.attrs["tokens_sha256"] == extraction.tokens_sha256(packed.tokens)
        assert rows.sizes["row"] == source["tokens"].size
        read, text = (
            ActivationStore.open([target.store], [target.manifest]).read(),
            TokenText(tokenizer),
        )
        for row in np.random.default_rng(0).integers(rows.sizes["row"], size=40).tolist():
            place = packed.origin(row)
            assert (place.context, place.position) == divmod(row, CONTEXT)
            assert source["tokens"].values[place.context, place.position] == place.token
            assert source["document"].values[place.context, place.position] == place.document
            window = window_of(packed, row, text)
            assert window.token == text.alone(place.token)
            assert "".join(window).replace("<s>", "") in TEXTS[place.document]
            # The row is what the model computes from this context up to this position, and from nothing else.
            ids = torch.from_numpy(
                packed.tokens[place.context, : place.position + 1].astype(np.int64)
            )
            with torch.no_grad():
                state = (
                    model(ids[None], output_hidden_states=True)
                    .hidden_states[LAYER + 1][0, -1]
                    .numpy()
                )
            scale = 0.002 if storage == "fp16" else 0.03
            np.testing.assert_allclose(read[row], state, rtol=0, atol=scale * np.abs(state).max())
            if storage == "fp16":
                np.testing.assert_array_equal(rows["resid_post"].values[row], read[row])

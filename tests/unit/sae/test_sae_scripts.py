"""The two scripts on a real activation store: whole outputs, twice the same, one writer."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from event_reader import points
from sae_fakes import SMALL, planted

from ghosttrack import sae
from ghosttrack.activations import extraction
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.store import Header, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus
from ghosttrack.runtime import files
from ghosttrack.sae.shared_rows import training_layers
from ghosttrack.settings import CorpusSettings
from sae import evaluate_sae, train_sae, train_shared_sae

ROWS, D_MODEL, CONTEXT = 1024, 16, 32


def write_inputs(folder: Path, word: str = "text", seed: int = 0) -> dict[str, Any]:
    """A fetched model and held-out tokens, as evaluation asks for them."""
    tokenizer = small_models.make_tokenizer()
    small_models.save(small_models.make_model("llama", seed), tokenizer, folder / "model")
    train, heldout = (
        corpus.SplitPaths(folder / f"{name}.zarr", folder / f"{name}.json")
        for name in ("train", "heldout")
    )
    settings = CorpusSettings(tokens=ROWS, heldout_tokens=ROWS, context=CONTEXT)
    texts = (f"{word} {number} of many" for number in range(5000))
    corpus.build(
        [corpus.Stream("a", texts, 1.0)], tokenizer, train, heldout, settings, {"source": "test"}
    )
    weights = folder / "model" / "model.safetensors"
    return {
        "heldout": heldout.store,
        "heldout_manifest": heldout.manifest,
        "model_weights": weights,
        "check": small_models.save_check(folder),
    }


def origin_of(inputs: dict[str, Any]) -> tuple[str, str]:
    """Hashes of weights and tokens, as a store's header has them."""
    tokens = corpus.read_tokens(inputs["heldout"], inputs["heldout_manifest"]).tokens
    return extraction.model_identity(
        inputs["model_weights"].parent
    ).weights_sha256, extraction.tokens_sha256(tokens)


def write_store(
    folder: Path,
    name: str,
    seed: int,
    weights: str = "w" * 64,
    tokens: str = "t" * 64,
    layer: int = 2,
) -> tuple[Path, Path]:
    values = planted(ROWS, D_MODEL, 32, 3.0, seed)[0].values.astype(np.float32)
    values[::CONTEXT] *= 300.0  # position 0 carries massive activations
    values[5] *= 300.0
    header = Header("tiny", weights, layer, "resid_post", CONTEXT, tokens)
    store, manifest = folder / f"{name}.zarr", folder / f"{name}.json"
    with StoreWriter(store, manifest, header, rows=ROWS, d_model=D_MODEL) as writer:
        writer.append(to_block(values))
    files.write_json(manifest.with_suffix(".source.json"), {"weights_sha256": weights})
    return store, manifest


def arguments(folder: Path, store: Path, manifest: Path) -> dict[str, Any]:
    return {
        "stores": [store],
        "manifests": [manifest],
        "model_source": manifest.with_suffix(".source.json"),
        "warm_start_layer": [],
        "weights": folder / "sae_weights.safetensors",
        "cfg": folder / "cfg.json",
        "history": folder / "history.csv",
        "sae": SMALL,
        "seed": 0,
        "layer": 2,
        "threads": 1,
        "micro_batch": 64,
        "resident_mb": 1536,
        "state": folder / "state",
        "model": "tiny",
        "training_digest": "",
    }


def test_training_and_evaluation_write_everything_and_twice_the_same_bytes(tmp_path: Path) -> None:
    store, manifest = write_store(tmp_path, "train", seed=0)
    inputs = write_inputs(tmp_path / "inputs")
    heldout, manifest_of_heldout = write_store(tmp_path, "heldout", 0, *origin_of(inputs))
    for name in ("one", "two"):
        folder = tmp_path / name
        train_sae.main(**arguments(folder, store, manifest))
        assert not (folder / "state").exists()
        weights, cfg, quality = (
            folder / file for file in ("sae_weights.safetensors", "cfg.json", "quality.json")
        )
        evaluate_sae.main(
            weights=weights,
            cfg=cfg,
            store=heldout,
            manifest=manifest_of_heldout,
            **inputs,
            quality=quality,
            layer=2,
            batch=4,
            threads=1,
        )
    names = ["cfg.json", "history.csv", "quality.json", "sae_weights.safetensors"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), (
            name
        )

    found = json.loads((tmp_path / "one" / "quality.json").read_text())
    excluded = ROWS // CONTEXT + 1
    steps = SMALL.epochs * ((ROWS - excluded) // SMALL.batch)
    exact = {
        "layer": 2,
        "site": "resid_post",
        "d_sae": 48,
        "k": 4,
        "rows": ROWS - excluded,
        "excluded_rows": excluded,
        "massive_rows": excluded,
        "unique_tokens": ROWS - excluded,
        "training_tokens": steps * SMALL.batch,
    }
    assert {key: found[key] for key in exact} == exact
    assert found["l0"] == pytest.approx(SMALL.k)  # the same rows as in training
    assert found["explained_variance"] == pytest.approx(1.0 - found["fvu"])
    assert found["spliced_rows"] == ROWS - excluded - ROWS // CONTEXT
    assert found["delta_ce"] == pytest.approx(
        found["ce_loss_with_sae"] - found["ce_loss_without_sae"]
    )
    cfg = json.loads((tmp_path / "one" / "cfg.json").read_text())
    assert cfg["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    history = (tmp_path / "one" / "history.csv").read_text().splitlines()
    assert history[0] == "step,tokens,loss,fvu,l0,dead,learning_rate"
    assert history[-1].startswith(f"{steps},{steps * SMALL.batch},")
    autoencoder = sae.load(tmp_path / "one")
    assert autoencoder.encode(torch.zeros(3, D_MODEL)).shape == (3, 48)


def test_less_memory_gives_the_same_bytes_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, manifest = write_store(tmp_path, "train", seed=0)
    caplog.set_level(logging.INFO, logger="ghosttrack")
    settings = SMALL.model_copy(update={"dead_after": 0.02})  # AuxK takes part
    knobs = {"first": {}, "second": {"resident_mb": 0, "micro_batch": 32}}
    for name, changed in knobs.items():
        train_sae.main(
            **{**arguments(tmp_path / name, store, manifest), "sae": settings, **changed}
        )
    one, two = (tmp_path / name / "sae_weights.safetensors" for name in knobs)
    assert one.read_bytes() == two.read_bytes()
    assert (
        "activations are kept in memory (resident_mb 1,536), micro-batches have 64 rows"
        in caplog.text
    )
    assert (
        "activations are read window by window (resident_mb 0), micro-batches have 32 rows"
        in caplog.text
    )


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    store, manifest = write_store(tmp_path, "train", seed=0)
    with files.lock(tmp_path / "state"), pytest.raises(UserError, match="in use by process"):
        train_sae.main(**arguments(tmp_path, store, manifest))


@pytest.mark.parametrize("name", ["topk", "jumprelu", "matryoshka"])
def test_every_architecture_is_trained_saved_and_evaluated(name: str, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    store, manifest = write_store(tmp_path, "train", 0, *origin_of(inputs))
    settings = SMALL.model_copy(update={"architecture": name})
    train_sae.main(**{**arguments(tmp_path, store, manifest), "sae": settings})
    quality = tmp_path / "quality.json"
    weights, cfg = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    evaluate_sae.main(
        weights=weights,
        cfg=cfg,
        store=store,
        manifest=manifest,
        **inputs,
        quality=quality,
        layer=2,
        batch=2,
        threads=1,
    )
    found, described = json.loads(quality.read_text()), json.loads(cfg.read_text())
    assert found["l0"] == pytest.approx(
        SMALL.k, rel=0.25 if name == "jumprelu" else 1e-6
    )  # 45 steps are few
    assert found["fvu"] < found["random_fvu"]
    assert described["architecture"] == ("topk" if name == "topk" else "jumprelu")
    assert described["metadata"]["training_architecture"] == name


def test_a_pretrained_autoencoder_that_does_not_fit_is_named_in_the_log_and_in_its_quality(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    store, manifest = write_store(tmp_path, "heldout", 0, *origin_of(inputs))
    train_sae.main(**arguments(tmp_path, store, manifest))
    weights, cfg, quality = (
        tmp_path / file for file in ("sae_weights.safetensors", "cfg.json", "quality.json")
    )
    found = []
    for pretrained in (None, {"source": "layer_02"}):
        described = json.loads(cfg.read_text())
        described["metadata"] |= {"pretrained": pretrained, "k": 10 * SMALL.k}
        cfg.write_text(json.dumps(described))
        evaluate_sae.main(
            weights=weights,
            cfg=cfg,
            store=store,
            manifest=manifest,
            **inputs,
            quality=quality,
            layer=2,
            batch=2,
            threads=1,
        )
        found.append(json.loads(quality.read_text()))
    assert "warning" not in found[0]
    assert "its cfg.json says 40; likely causes" in found[1]["warning"]
    assert f"layer 2: {found[1]['warning']}" in caplog.text


def test_activations_of_another_layer_or_model_are_refused(tmp_path: Path) -> None:
    store, manifest = write_store(tmp_path, "train", seed=0)
    files.write_json(tmp_path / "other.json", {"weights_sha256": "x"})
    with pytest.raises(UserError, match=r"its weights_sha256 is w+, this job expects x"):
        train_sae.main(
            **{**arguments(tmp_path, store, manifest), "model_source": tmp_path / "other.json"}
        )
    with pytest.raises(UserError, match="layer is 2"):
        train_sae.main(**{**arguments(tmp_path, store, manifest), "layer": 3})


def test_another_model_or_corpus_than_the_held_out_store_s_is_refused(tmp_path: Path) -> None:
    inputs, others = (
        write_inputs(tmp_path / word, word, seed) for seed, word in enumerate(("text", "other"))
    )
    store, manifest = write_store(tmp_path, "heldout", 0, *origin_of(inputs))
    train_sae.main(**arguments(tmp_path, store, manifest))
    weights, cfg, quality = (
        tmp_path / file for file in ("sae_weights.safetensors", "cfg.json", "quality.json")
    )
    tokens = {name: others[name] for name in ("heldout", "heldout_manifest")}
    for changed, key in (
        ({"model_weights": others["model_weights"]}, "weights_sha256"),
        (tokens, "tokens_sha256"),
    ):
        with pytest.raises(
            UserError,
            match=rf"heldout\.zarr comes from another run: its {key} is \w+, this job expects",
        ):
            evaluate_sae.main(
                weights=weights,
                cfg=cfg,
                store=store,
                manifest=manifest,
                **{**inputs, **changed},
                quality=quality,
                layer=2,
                batch=2,
                threads=1,
            )
    assert not quality.exists()


def test_a_warm_start_begins_with_the_given_weights_and_says_when_it_cannot(tmp_path: Path) -> None:
    store, manifest = write_store(tmp_path, "train", seed=0)
    given = arguments(tmp_path / "first", store, manifest)
    train_sae.main(**given)
    once = SMALL.model_copy(update={"warm_start_epochs": 1, "learning_rate": 1e-6})
    begun = {
        **arguments(tmp_path / "begun", store, manifest),
        "warm_start_layer": [given["weights"], given["cfg"]],
        "sae": once,
    }
    train_sae.main(**begun)
    tokens = [
        files.read_json(tmp_path / name / "cfg.json")["metadata"]["training_tokens"]
        for name in ("first", "begun")
    ]
    assert tokens[0] == SMALL.epochs * tokens[1]
    # The same layer, hardly trained any further: the same autoencoder.
    assert torch.allclose(
        sae.load(tmp_path / "begun").W_dec, sae.load(tmp_path / "first").W_dec, atol=1e-2
    )
    wide = {**begun, "sae": SMALL.model_copy(update={"d_sae": 40})}
    with pytest.raises(UserError, match="48 features of 16 dimensions, this layer needs 40 of 16"):
        train_sae.main(**wide)


def test_one_dictionary_for_two_layers_is_written_twice_and_twice_the_same(tmp_path: Path) -> None:
    stores = [write_store(tmp_path, f"train_{layer}", seed=layer, layer=layer) for layer in (2, 4)]
    for name in ("one", "two"):
        folders = [tmp_path / name / f"layer_{layer:02d}" for layer in (2, 4)]
        train_shared_sae.main(
            stores=[store for store, _ in stores],
            manifests=[manifest for _, manifest in stores],
            model_source=stores[0][1].with_suffix(".source.json"),
            layers=[2, 4],
            weights=[folder / "sae_weights.safetensors" for folder in folders],
            cfg=[folder / "cfg.json" for folder in folders],
            history=[folder / "history.csv" for folder in folders],
            sae=SMALL,
            seed=0,
            threads=1,
            micro_batch=64,
            state=tmp_path / "state",
            model="tiny",
            training_digest="",
            events=tmp_path / "events" if name == "two" else None,
        )
    rows = (tmp_path / "two" / "layer_02" / "history.csv").read_text().splitlines()[1:]
    assert [step for step, _ in points(tmp_path / "events")["loss"]] == [
        int(row.split(",")[0]) for row in rows
    ]
    for place in ("layer_02", "layer_04"):
        for file in ("sae_weights.safetensors", "cfg.json", "history.csv"):
            assert (tmp_path / "one" / place / file).read_bytes() == (
                tmp_path / "two" / place / file
            ).read_bytes()
    lower, upper = (sae.load(tmp_path / "one" / place) for place in ("layer_02", "layer_04"))
    assert torch.nn.functional.cosine_similarity(lower.W_dec, upper.W_dec).numpy() == pytest.approx(
        1.0, abs=1e-5
    )
    assert (lower.metadata["layer"], upper.metadata["layer"]) == (2, 4)
    assert upper.metadata["hook_name"] == "blocks.4.hook_resid_post"


def test_shares_of_a_batch_are_even_and_layers_have_orders_of_their_own(tmp_path: Path) -> None:
    path, manifest = write_store(tmp_path, "train", seed=0)
    store = ActivationStore.open([path], [manifest])
    parts = training_layers([store, store, store], 64, seed=0, resident=True)
    batches = [part.batches.batch_at(0) for part in parts]
    assert [len(batch) for batch in batches] == [22, 21, 21]
    assert not np.array_equal(batches[1], batches[2])
    again = training_layers([store, store, store], 64, seed=0, resident=False)
    assert np.array_equal(again[2].batches.batch_at(7), parts[2].batches.batch_at(7))

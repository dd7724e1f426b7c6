"""Models whose residual stream exceeds float16: their stores have a scale, all else is the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import run_fakes
import small_models
import torch
from sae_fakes import SMALL
from small_stores import HEADER, make_rows, open_one, write

from extract import check_model, extract_activations, extract_heldout
from ghosttrack import Detector, Text
from ghosttrack import sae as saes
from ghosttrack.activations import int8s, limits, model_check
from ghosttrack.activations.layout import CHUNK_ROWS, HALF_MAX, MASSIVE_FACTOR
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.activations.sampler import ChunkSampler
from ghosttrack.activations.store import Storage, as_stored, scale_for, to_block
from ghosttrack.activations.writer import StoreWriter
from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus
from ghosttrack.runtime import files
from ghosttrack.settings import ActivationSettings, CorpusSettings
from sae import evaluate_sae, train_sae

FACTOR = 2**18
SMALLEST_NORMAL = 2.0**-14
CONTEXT = 32


# ---- stores
def wide_rows(rows: int, largest: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """Rows of any magnitude from subnormal to `largest`, of both signs."""
    generator = np.random.default_rng(seed)
    sizes: npt.NDArray[np.float64] = np.exp2(generator.uniform(-30, np.log2(largest), (rows, 8)))
    signs = generator.choice([-1.0, 1.0], sizes.shape)
    return np.asarray(sizes * signs, dtype=np.float32)


@pytest.mark.parametrize("exponent", range(11))
def test_a_power_of_two_changes_no_digit_of_a_normal_float16(exponent: int, tmp_path: Path) -> None:
    scale = 2**exponent
    values = wide_rows(5_000, HALF_MAX, seed=exponent)
    rounded = values.astype(np.float16).astype(np.float32)
    found = open_one(*write(tmp_path, values, HEADER._replace(scale=scale))).read()
    normal = np.abs(values) / scale >= SMALLEST_NORMAL
    assert normal.any()
    assert not normal.all()
    np.testing.assert_array_equal(found[normal], rounded[normal])
    # Smaller values lose digits: their step is that of the subnormal numbers.
    assert np.abs(found - values)[~normal].max() <= scale * 2.0**-25
    np.testing.assert_array_equal(as_stored(torch.from_numpy(values), scale).numpy(), found)


@pytest.mark.parametrize("scale", [2, 64])
@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_a_scaled_store_returns_what_a_store_of_the_divided_rows_returns_times_the_scale(
    scale: int, storage: Storage, tmp_path: Path
) -> None:
    values = (make_rows(9_000) * (HALF_MAX * scale / 8)).astype(np.float32)
    header = HEADER._replace(storage=storage)
    found = open_one(*write(tmp_path, values, header._replace(scale=scale), name="scaled"))
    divided = open_one(*write(tmp_path, values / np.float32(scale), header, name="divided"))
    assert (found.scale, divided.scale) == (scale, 1)
    assert (found.read().dtype.name, divided.read().dtype.name) == ("float32", "float16")
    assert np.abs(found.read()).max() > HALF_MAX
    np.testing.assert_array_equal(found.read(), divided.read().astype(np.float32) * scale)
    for number in range(3):
        np.testing.assert_array_equal(found.half(number), divided.chunk(number))
        np.testing.assert_array_equal(found.chunk(number), divided.half(number) * np.float32(scale))
    np.testing.assert_array_equal(found.excluded, divided.excluded)
    found.verify()
    contents = [
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("scaled", "divided")
    ]
    assert contents[0]["median_norm"] == pytest.approx(scale * contents[1]["median_norm"])
    for resident in (True, False):
        ours, theirs = (ChunkSampler(store, 64, 0, resident) for store in (found, divided))
        assert (ours.batch_at(3) == theirs.batch_at(3) * scale).all()


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_the_storage_error_of_a_scaled_store_is_relative(storage: Storage, tmp_path: Path) -> None:
    errors = []
    for scale in (1, 32):
        name = f"scale_{scale}"
        header = HEADER._replace(storage=storage, scale=scale)
        place = tmp_path / f"{name}.zarr", tmp_path / f"{name}.json"
        with StoreWriter(*place, header, rows=5_000, d_model=8) as writer:
            writer.append(to_block(make_rows(5_000) * scale, exact=True, scale=scale))
        errors.append(files.read_json(place[1])["storage_error"])
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_int8s_levels_are_those_of_the_divided_rows(tmp_path: Path) -> None:
    values = make_rows(CHUNK_ROWS) * 1e6
    target, _ = write(tmp_path, values, HEADER._replace(storage="int8s", scale=128, context=None))
    import zarr

    group: Any = zarr.open_group(target, mode="r")
    expected = int8s.encode((values / 128).astype(np.float16))
    np.testing.assert_array_equal(group["resid_post"][:], expected.levels)
    np.testing.assert_array_equal(group["mean"][0], expected.mean)
    assert group.attrs["scale"] == 128


def test_a_store_of_scale_1_does_not_mention_it(tmp_path: Path) -> None:
    target, manifest = write(tmp_path, make_rows(10))
    assert "scale" not in manifest.read_text()
    assert "scale" not in (target / "zarr.json").read_text()


@pytest.mark.parametrize("scale", [0, 3, -2, 2.0, "4"])
def test_a_manifest_whose_scale_is_no_power_of_two_is_refused(scale: Any, tmp_path: Path) -> None:
    target, manifest = write(tmp_path, make_rows(10))
    files.write_json(manifest, {**files.read_json(manifest), "scale": scale})
    with pytest.raises(UserError, match=r"a\.json: its scale is .*, expected a power of two"):
        open_one(target, manifest)


def test_stores_of_one_layer_with_different_scales_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path, make_rows(10), total=20, name="one")
    other = write(tmp_path, make_rows(10), HEADER._replace(scale=2), 10, 20, name="other")
    for pair in ([one, other], [other, one]):
        with pytest.raises(UserError, match="comes from another run: its scale is"):
            ActivationStore.open([path for path, _ in pair], [path for _, path in pair])


def test_rows_in_other_units_than_the_stores_are_not_written(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "a.zarr", tmp_path / "a.json", HEADER, rows=10, d_model=8)
    with pytest.raises(ValueError, match="rows in units of 2, 1 expected"), writer:
        writer.append(to_block(make_rows(10), scale=2))


def test_values_beyond_a_scaled_store_are_clipped_counted_and_logged_in_excluded_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = make_rows(100)
    values[3, 2], values[4, 2], values[50, :2] = 1e6, 2.0**17, 8e5
    target, manifest = write(tmp_path, values, HEADER._replace(scale=4))
    assert json.loads(manifest.read_text())["clipped"] == 3
    assert "3 values in 2 massive or first rows were clipped to 262,016" in caplog.text
    np.testing.assert_array_equal(open_one(target, manifest).read()[[3, 4], 2], [262_016, 2**17])


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_a_value_beyond_a_scaled_store_is_refused_with_a_scale_that_holds_it(
    storage: Storage, tmp_path: Path
) -> None:
    values = np.full((200, 8), 1e5, np.float32)
    values[77, 3] = -300_000.0
    header = HEADER._replace(storage=storage, scale=2)
    with pytest.raises(
        UserError,
        match=r"layer 3: 1 of 200 rows hold values beyond float16, at most 131,008 at scale 2; "
        r"the largest is 300,000 in row 77\. Set activations\.min_scale to 16",
    ):
        write(tmp_path, values, header)
    write(tmp_path, values, header._replace(scale=16))


# ---- the check
def test_a_scale_holds_twenty_median_norms_and_is_1_where_float16_does() -> None:
    for norm in (1e-3, 700.0, 3_275.0, 3_276.0, 9_450.0, 1e6):
        (scale,) = model_check.scales({0: norm}, 1).values()
        largest = model_check.HEAD_ROOM * MASSIVE_FACTOR * norm
        assert largest <= HALF_MAX * scale
        assert scale == 1 or largest > HALF_MAX * scale / 2
        assert (scale == 1) == (norm <= 3_275)
    assert model_check.scales({None: 1.0, 4: 9_450.0}, 2) == {None: 2, 4: 4}
    assert [scale_for(HALF_MAX * size) for size in (0.0, 1.0, 1.1, 2.0, 2.1)] == [1, 1, 2, 2, 4]


def checked(folder: Path, factor: int | None, **options: Any) -> Path:
    model = small_models.make_model("gpt2")
    if factor is not None:
        model = small_models.magnified(model, factor)
    small_models.save(model, small_models.make_tokenizer(), folder / "model")
    check_model.main(
        weights=folder / "model" / "model.safetensors",
        check=folder / "model_check.json",
        table=folder / "model_check.csv",
        threads=1,
        **{"site": "resid_post", "min_scale": 1, **options},
    )
    return folder / "model_check.json"


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_the_check_of_an_ordinary_model_mentions_no_scale(site: str, tmp_path: Path) -> None:
    path = checked(tmp_path, None, site=site)
    assert "scale" not in path.read_text()
    assert limits.scales(path, [None, 0, 3]) == [1, 1, 1]


def test_the_check_gives_every_layer_of_a_large_model_a_scale(tmp_path: Path) -> None:
    found = limits.scales(checked(tmp_path / "auto", FACTOR), [None, 0, 1, 2, 3])
    assert min(found) > 1
    assert found == sorted(found)  # the stream grows
    assert len(set(found)) > 1
    larger = limits.scales(
        checked(tmp_path / "more", FACTOR, min_scale=max(found)), [None, 0, 1, 2, 3]
    )
    assert set(larger) == {max(found)}


def test_a_minimum_that_is_no_power_of_two_is_refused() -> None:
    assert ActivationSettings(min_scale=16).min_scale == 16
    with pytest.raises(
        ValueError, match=r"activations\.min_scale: 6 must be a power of two, such as 8"
    ):
        ActivationSettings(min_scale=6)


# ---- a whole model
class Run:
    """Training and held-out stores, and the SAE of layer 2, of a model that is checked first."""

    def __init__(self, folder: Path, factor: int | None, storage: Storage) -> None:
        check, home = checked(folder, factor), folder / "model"
        train, heldout = (
            corpus.SplitPaths(folder / f"{name}.zarr", folder / f"{name}.json")
            for name in ("train", "heldout")
        )
        texts = (f"The capital of place {number} is text {number % 7}" for number in range(5000))
        settings = CorpusSettings(tokens=1024, heldout_tokens=1024, context=CONTEXT)
        corpus.build(
            [corpus.Stream("a", texts, 1.0)],
            small_models.make_tokenizer(),
            train,
            heldout,
            settings,
            {"source": "test"},
        )
        common: dict[str, Any] = {
            "weights": home / "model.safetensors",
            "check": check,
            "site": "resid_post",
            "batch": 8,
            "threads": 1,
            "code": "",
        }
        pairs = {
            name: (folder / name / "layer_02.zarr", folder / name / "layer_02.json")
            for name in ("activations", "texts")
        }
        extract_activations.main(
            train=train.store,
            train_manifest=train.manifest,
            stores=[pairs["activations"][0]],
            manifests=[pairs["activations"][1]],
            storage=storage,
            contexts_per_shard=1000,
            shard=0,
            **common,
        )
        extract_heldout.main(
            heldout=heldout.store,
            heldout_manifest=heldout.manifest,
            stores=[pairs["texts"][0]],
            manifests=[pairs["texts"][1]],
            **common,
        )
        self.train, self.heldout = (open_one(*pair) for pair in pairs.values())
        self.sae = folder / "sae"
        train_sae.main(
            stores=[pairs["activations"][0]],
            manifests=[pairs["activations"][1]],
            model_source=home / "source.json",
            warm_start_layer=[],
            weights=self.sae / "sae_weights.safetensors",
            cfg=self.sae / "cfg.json",
            history=self.sae / "history.csv",
            sae=SMALL,
            seed=0,
            layer=2,
            threads=1,
            micro_batch=64,
            resident_mb=1536,
            state=self.sae / "state",
            model="tiny",
            training_digest="",
        )
        evaluate_sae.main(
            weights=self.sae / "sae_weights.safetensors",
            cfg=self.sae / "cfg.json",
            store=pairs["texts"][0],
            manifest=pairs["texts"][1],
            heldout=heldout.store,
            heldout_manifest=heldout.manifest,
            model_weights=home / "model.safetensors",
            check=check,
            quality=self.sae / "quality.json",
            layer=2,
            batch=4,
            threads=1,
        )


@pytest.mark.parametrize("storage", ["fp16", "int8s"])
def test_a_model_of_large_activations_gets_the_sae_of_its_small_twin_in_its_own_units(
    storage: Storage, tmp_path: Path
) -> None:
    large, small = (
        Run(tmp_path / name, factor, storage)
        for name, factor in (("large", FACTOR), ("small", None))
    )
    assert large.train.scale > small.train.scale == 1
    assert large.train.scale == large.heldout.scale
    for ours, theirs in ((large.train, small.train), (large.heldout, small.heldout)):
        values, expected = ours.read() / FACTOR, theirs.read().astype(np.float32)
        assert np.abs(values).max() * FACTOR > HALF_MAX
        np.testing.assert_allclose(
            values, expected, rtol=1e-3, atol=2e-2 if storage == "int8s" else 1e-3
        )
        np.testing.assert_array_equal(ours.excluded, theirs.excluded)
    trained, twin = saes.load(large.sae), saes.load(small.sae)
    x = torch.from_numpy(small.heldout.read(1, 30).astype(np.float32))
    torch.testing.assert_close(
        trained.decode(trained.encode(x * FACTOR)) / FACTOR,
        twin.decode(twin.encode(x)),
        rtol=2e-2,
        atol=2e-2,
    )
    found, expected = (files.read_json(run.sae / "quality.json") for run in (large, small))
    assert found["fvu"] == pytest.approx(expected["fvu"], rel=2e-2)
    assert found["ce_loss_without_sae"] == pytest.approx(expected["ce_loss_without_sae"], rel=1e-3)
    assert found["ce_loss_with_sae"] == pytest.approx(expected["ce_loss_with_sae"], rel=2e-2)


def test_the_detector_of_a_model_of_large_activations_scores_as_that_of_its_small_twin(
    tmp_path: Path,
) -> None:
    texts = [
        Text("Q facts 3 is Paris.", "Paris"),
        Text("Q others 4 is Ada gold.", "Ada gold"),
        Text("The capital of France is 79.", "79"),
    ]
    found = []
    for name, factor in (("large", FACTOR), ("small", None)):
        run = tmp_path / name
        run_fakes.make(run, factor=factor)
        run_fakes.save(run)
        found.append(Detector.load(run).score(texts))
        layer = run / "examples" / "facts" / "layer_02"
        store = open_one(layer.with_suffix(".zarr"), layer.with_suffix(".json"))
        assert (store.scale > 1) == (factor is not None)
        assert pd.read_parquet(run / "detection" / "token_scores.parquet")["probe"].notna().all()
    for ours, theirs in zip(*found, strict=True):
        assert ours.log_odds == pytest.approx(theirs.log_odds, abs=0.05)
        for one, other in zip(ours.tokens, theirs.tokens, strict=True):
            assert one.probe == pytest.approx(other.probe, abs=0.05)


def test_a_text_beyond_the_head_room_stops_the_extraction_with_its_layer_and_a_remedy(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    run_fakes.make(run, groups=4, factor=FACTOR)
    check = files.read_json(run / "model_check.json")
    files.write_json(run / "model_check.json", {**check, "scales": {**check["scales"], "2": 2}})
    with pytest.raises(
        UserError,
        match=r"resid_post of layer 2: .* beyond float16, at most 131,008 at scale 2; the largest "
        r"is [\d,]+ in row \d+\. Set activations\.min_scale to (\d+),",
    ) as caught:
        run_fakes.extract(run, "facts")
    least = int(str(caught.value).split("min_scale to ")[1].split(",")[0])
    kept = {name: max(one, least) for name, one in check["scales"].items()}
    files.write_json(run / "model_check.json", {**check, "scales": kept})
    run_fakes.extract(run, "facts")

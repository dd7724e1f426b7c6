"""Jobs of one run share a precision, and half precision ends where float32 is needed."""

import json
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pandas as pd
import pytest
import small_models
import torch
from accelerate import dispatch_model
from plain_reading import PlainModel

from ghosttrack.activations import extraction, hooks, limits, model_check, store
from ghosttrack.activations.layout import HALF_MAX
from ghosttrack.activations.packed_texts import PackedReader
from ghosttrack.activations.reader import ActivationStore
from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus, models, sites
from ghosttrack.inputs.model_precision import FLOAT32, Precision
from ghosttrack.settings import InferenceSettings

TEXT = np.random.default_rng(0).integers(7, 128, 900)
HALVES = [torch.bfloat16, torch.float16]
BFLOAT16 = InferenceSettings(dtype="bfloat16")
# Architectures with windows, ALiBi, experts, a recurrence, parallel blocks and in-place sums.
KINDS = [
    "gpt2",
    "llama",
    "mistral",
    "gemma3_text",
    "falcon+parallel",
    "qwen3_moe",
    "mamba",
    "olmo2",
]


def checked(model: Any) -> model_check.ModelCheck:
    return model_check.check(model, TEXT, 0, "resid_post")


# ---- the check
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", KINDS)
def test_the_check_finds_the_same_limits_and_sublayers_in_half_precision(
    name: str, dtype: torch.dtype
) -> None:
    exact = checked(architectures.make(name))
    half = checked(architectures.make(name).to(dtype))
    assert half.limits == exact.limits
    assert half.sublayers == exact.sublayers


def test_an_error_as_small_as_rounding_is_seen_in_float32() -> None:
    half, exact = (
        {(one.way, one.tokens): one.exact for one in checked(model).comparisons}
        for model in (
            architectures.make("llama4_text").to(torch.bfloat16),
            architectures.make("llama4_text"),
        )
    )
    # The reason why the script checks in float32, too.
    assert any(half.get(case) and not right for case, right in exact.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_experts_change_with_rounding_is_read_alone(dtype: torch.dtype) -> None:
    model = architectures.make("mixtral").to(dtype)

    def rounded(_router: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        # Processors round by the shape of a product, but not all of them do so here.
        (x,) = inputs
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel()))
        return (x * (1 + noise.to(x.dtype) / 16),)

    for block in model.model.layers:
        block.mlp.gate.register_forward_pre_hook(rounded)
    assert checked(model).limits.packed == 0


def test_both_limits_are_the_stricter_of_two() -> None:
    one = limits.Limits(10, 0, 30, batched=True, skipped=False, named=True)
    other = limits.Limits(5, 20, 40, batched=False, skipped=True, named=True)
    both = limits.Limits(5, 0, 30, batched=False, skipped=False, named=True)
    assert one.both(other) == both == other.both(one)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_that_is_not_causal_is_refused_in_half_precision(dtype: torch.dtype) -> None:
    model = architectures.make("llama").to(dtype)
    model.model.layers[1].register_forward_hook(
        lambda _module, _arguments, output: output + output.flip(1)
    )
    with pytest.raises(UserError, match="is not causal"):
        checked(model)


def test_hidden_states_beyond_float16_are_named() -> None:
    model = architectures.make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e6)
    with pytest.raises(UserError, match=r"exceed float16 .* set inference\.dtype: bfloat16"):
        checked(model.to(torch.float16))


def test_no_statistics_come_from_logits_that_are_not_numbers() -> None:
    model = architectures.make("llama").to(torch.float16)
    reader = PackedReader(model, 0)
    final = torch.zeros(6, model.config.hidden_size, dtype=torch.float16)
    final[4] = torch.inf
    place, target = np.arange(5), np.ones(5, dtype=np.int64)
    with pytest.raises(UserError, match=r"^1 of 5 tokens .* NaN, .* inference\.dtype: bfloat16"):
        reader.token_statistics(final, place, target, np.ones(5, dtype=bool))
    reader.token_statistics(final, place[:4], target[:4], np.ones(4, dtype=bool))


def test_pooled_statements_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ghosttrack.activations import statement_reading

    model, tokenizer = small_models.make_model("llama"), small_models.make_tokenizer()
    monkeypatch.setattr(
        statement_reading, "pool", lambda x: np.full((3, x.shape[1]), np.inf, dtype=np.float32)
    )
    with pytest.raises(UserError, match="statements, text 1: an activation is NaN or infinite"):
        statement_reading.StatementReader(
            model, tokenizer, [0], site="resid_post", limit=64, batch=2, packed=64
        ).read(["A is B."])


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "falcon+parallel"])
def test_the_search_for_sublayers_leaves_every_weight_as_it_was(name: str) -> None:
    model = architectures.make(name).to(torch.bfloat16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = sites.find_sublayers(model)
    assert found == sites.find_sublayers(architectures.make(name))
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {value.dtype for value in after.values() if value.is_floating_point()} == {
        torch.bfloat16
    }


def test_sublayers_are_found_below_a_massive_stream_in_bfloat16() -> None:
    model = architectures.make("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] += 3000.0
    expected = sites.find_sublayers(model)
    assert sites.find_sublayers(model.to(torch.bfloat16)) == expected
    assert expected[0] == sites.Sublayers("self_attn", "mlp")


# ---- jobs of one run
@pytest.fixture
def run(tmp_path: Path) -> Path:
    model, tokenizer = small_models.make_model("llama"), small_models.make_tokenizer()
    small_models.save(model, tokenizer, tmp_path / "model")
    return tmp_path


def check_run(run: Path, inference: InferenceSettings) -> pd.DataFrame:
    from extract import check_model

    check_model.main(
        weights=run / "model" / "model.safetensors",
        check=run / "model_check.json",
        table=run / "model_check.csv",
        site="attn_out",
        min_scale=1,
        threads=1,
        inference=inference,
    )
    return pd.read_csv(run / "model_check.csv")


def extract_run(
    run: Path, inference: InferenceSettings, monkeypatch: pytest.MonkeyPatch
) -> ActivationStore:
    """The activations of layer 1 on four contexts."""
    from extract import extract_heldout

    tokens = contexts()
    monkeypatch.setattr(corpus, "read_tokens", lambda *_: corpus.PackedTokens(tokens, tokens, {}))
    stores, manifests = [run / "layer_01.zarr"], [run / "layer_01.json"]
    extract_heldout.main(
        heldout=run,
        heldout_manifest=run,
        weights=run / "model" / "model.safetensors",
        check=run / "model_check.json",
        stores=stores,
        manifests=manifests,
        site="resid_post",
        batch=2,
        threads=1,
        code="",
        inference=inference,
    )
    return ActivationStore.open(stores, manifests)


def contexts() -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(1).integers(1, 400, (4, 12)).astype(np.int32)


def test_a_run_in_bfloat16_is_checked_twice_and_stores_what_a_plain_hook_sees(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = check_run(run, BFLOAT16)
    assert set(table["precision"]) == {"bfloat16", "float32"}
    assert table["exact"].all()
    about = json.loads((run / "model_check.json").read_text())
    assert about["precision"] == Precision("bfloat16")._asdict()
    assert about["sublayers"] == [{"attn_out": "self_attn", "mlp_out": "mlp"}] * 4
    found = extract_run(run, BFLOAT16, monkeypatch)
    assert found.attributes["model_precision"] == "bfloat16"
    plain = PlainModel(models.load_model(run / "model", "cpu", Precision("bfloat16")))
    true = torch.cat([plain.read(text).blocks[1] for text in contexts().tolist()])
    assert true.dtype == torch.bfloat16
    np.testing.assert_array_equal(found.read(), true.half().numpy())


def test_a_job_in_another_precision_than_the_check_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(check_run(run, InferenceSettings())["precision"]) == {"float32"}
    with pytest.raises(
        UserError,
        match=r"run the model in bfloat16, but .*model_check\.json was written in float32: all "
        r"jobs of a run need one precision.* set inference\.dtype: float32",
    ):
        extract_run(run, BFLOAT16, monkeypatch)
    assert not (run / "layer_01.zarr").exists()
    extract_run(run, InferenceSettings(), monkeypatch)


def test_every_job_with_the_model_loads_it_in_the_precision_of_the_run() -> None:
    scripts = Path(__file__).parents[3] / "workflow_scripts"
    loading = [
        path.stem for path in scripts.glob("*/*.py") if "models.load_model(" in path.read_text()
    ]
    assert loading == ["check_model"]  # which decides the precision; others use run_model.load


def test_a_check_without_a_precision_was_float32(run: Path) -> None:
    path = run / "model_check.json"
    path.write_text(json.dumps({"limits": small_models.exact()._asdict()}))
    assert limits.read_precision(path) == FLOAT32
    path.write_text(json.dumps({"precision": {"kind": "half"}}))
    with pytest.raises(UserError, match="does not hold the precision of a checked model"):
        limits.read_precision(path)


def test_shards_in_different_precision_are_not_one_layer(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_models.save_check(run)
    extract_run(run, InferenceSettings(), monkeypatch)
    manifest = run / "layer_01.json"
    content = json.loads(manifest.read_text())
    assert content["model_precision"] == "float32"
    with pytest.raises(UserError, match="model_precision is float32, this job expects bfloat16"):
        ActivationStore.open([run / "layer_01.zarr"], [manifest], {"model_precision": "bfloat16"})
    del content["model_precision"]  # as written before the key existed
    manifest.write_text(json.dumps(content))
    opened = ActivationStore.open([run / "layer_01.zarr"], [manifest])
    assert opened.attributes["model_precision"] == "float32"


# ---- from half precision to float32
@pytest.mark.parametrize("dtype", HALVES)
def test_norms_and_stored_values_come_from_float32(dtype: torch.dtype) -> None:
    rows = (100 * torch.randn(6, 40, generator=torch.Generator().manual_seed(0))).to(dtype)
    block = store.to_block(rows, exact=True)
    np.testing.assert_array_equal(block.norms, rows.float().norm(dim=1).numpy())
    np.testing.assert_array_equal(block.values, rows.float().half().numpy())
    assert block.exact is not None
    assert block.exact.dtype == np.float32


def test_values_of_a_bfloat16_model_beyond_float16_are_clipped_and_counted() -> None:
    rows = torch.ones(3, 8, dtype=torch.bfloat16)
    rows[1, :2] = torch.tensor([1e5, -1e6])
    block = store.to_block(rows)
    largest = float(rows[1, 1].abs())
    assert block.clipped.tolist() == [[1.0, 2.0, largest]]
    assert isinstance(block.values, np.ndarray)
    assert block.values[1, :3].tolist() == [HALF_MAX, -HALF_MAX, 1.0]
    assert np.isfinite(block.norms).tolist() == [True, True, True]


def test_an_infinite_row_of_a_float16_model_names_its_data_type(tmp_path: Path) -> None:
    from ghosttrack.activations.writer import StoreWriter

    header = store.Header("m", "w", 3, "resid_post", None, "t", model_precision="float16")
    rows = torch.full((2, 4), torch.inf, dtype=torch.float16)
    paths = tmp_path / "a.zarr", tmp_path / "a.json"
    with (
        pytest.raises(UserError, match=r"exceed float16 .* set inference\.dtype: bfloat16"),
        StoreWriter(*paths, header, rows=2, d_model=4) as writer,
    ):
        writer.append(store.to_block(rows))


@pytest.mark.parametrize("dtype", HALVES)
def test_log_probabilities_and_entropies_come_from_float32_logits(dtype: torch.dtype) -> None:
    model = architectures.make("llama").to(dtype)
    ids = TEXT[:10]
    with torch.inference_mode():
        final = models.backbone(model)(input_ids=torch.from_numpy(ids[None])).last_hidden_state[0]
        logits = model(input_ids=torch.from_numpy(ids[None])).logits[0]
        found = PackedReader(model, 0).token_statistics(
            final, np.arange(9), ids[1:], np.ones(9, dtype=bool)
        )
    logs = logits.double().log_softmax(-1)[:-1]
    true = logs.gather(1, torch.from_numpy(ids[1:, None]))[:, 0]
    np.testing.assert_allclose(found.logprob, true, atol=1e-5)
    np.testing.assert_allclose(found.entropy, -(logs.exp() * logs).sum(-1), atol=1e-5)


# ---- a model spread over devices
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "opt", "bloom", "mixtral"])
def test_a_model_with_the_hooks_of_accelerate_is_read_as_without(name: str) -> None:
    """On one CPU: the hooks that move inputs to the device of each block, with one device."""
    expected = checked(architectures.make(name))
    model = architectures.make(name)
    parts = {child: "cpu" for child, _ in model.named_children()}
    spread = dispatch_model(model, parts, main_device="cpu", force_hooks=True)
    hooked = [module for module in spread.modules() if "forward" in vars(module)]
    assert set(models.blocks(spread)) & set(hooked)
    found = checked(spread)
    assert found.limits == expected.limits
    assert found.sublayers == expected.sublayers
    assert hooked == [module for module in spread.modules() if "forward" in vars(module)]


def test_a_replaced_forward_gives_back_the_one_that_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, plain = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    own = module.forward
    monkeypatch.setattr(module, "forward", lambda x: own(x) + 1)
    x = torch.ones(1, 2)
    before, was = module(x), plain(x)
    with hooks.forward_replaced([module, plain], lambda: x * 7):
        assert torch.equal(module(x), x * 7)
        assert torch.equal(plain(x), x * 7)
    assert torch.equal(module(x), before)
    assert torch.equal(plain(x), was)
    assert "forward" not in vars(plain)


def test_captured_outputs_are_on_the_device_of_the_first() -> None:
    first, second = torch.nn.Identity(), torch.nn.Identity()
    with hooks.captured([first, second], stop=False) as outputs:
        first(torch.ones(1, 2, 3, device="meta"))
        second(torch.ones(1, 2, 3))
    assert [output.device.type for output in outputs] == ["meta", "meta"]


def test_the_identity_of_a_model_names_its_precision(run: Path) -> None:
    assert extraction.model_identity(run / "model").precision == "float32"
    found = extraction.model_identity(run / "model", Precision("bfloat16"))
    assert found.precision == "bfloat16"

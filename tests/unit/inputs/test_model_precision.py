"""The precision in which a model runs: resolved from settings, device and checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch

from ghosttrack.errors import UserError
from ghosttrack.inputs import dense_layers, model_precision, models
from ghosttrack.inputs.model_precision import FLOAT32, Precision
from ghosttrack.settings import InferenceSettings


def inference(**values: Any) -> InferenceSettings:
    return InferenceSettings.model_validate(values)


def saved(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = small_models.make_model("llama").to(dtype)
    small_models.save(model, small_models.make_tokenizer(), folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_auto_is_float32_on_a_cpu_and_the_checkpoints_data_type_on_a_gpu(
    tmp_path: Path, dtype: str
) -> None:
    folder = saved(tmp_path / "model", getattr(torch, dtype))
    assert model_precision.checkpoint_dtype(folder) == dtype
    assert model_precision.resolve(folder, "cpu", inference()) == FLOAT32
    assert model_precision.resolve(folder, "cuda", inference()) == Precision(dtype)


def test_a_checkpoint_has_the_data_type_of_most_of_its_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = {
        "norm": torch.ones(8, 2),
        "dense": torch.ones(8, 8, dtype=torch.bfloat16),
        "router": torch.ones(4, 4, dtype=torch.float16),
    }
    save_file(weights, tmp_path / "model.safetensors")
    assert model_precision.checkpoint_dtype(tmp_path) == "bfloat16"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_given_data_type_is_the_same_on_every_device(tmp_path: Path, device: str) -> None:
    folder = saved(tmp_path / "model")
    found = model_precision.resolve(folder, device, inference(dtype="float16"))
    assert found == Precision("float16")


def test_tf32_is_for_float32_products_on_a_gpu(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    wanted = inference(dtype="float32", tf32=True)
    assert model_precision.resolve(folder, "cpu", wanted) == FLOAT32
    assert model_precision.resolve(folder, "cuda", wanted) == Precision("float32", tf32=True)
    half = inference(dtype="bfloat16", tf32=True)
    assert model_precision.resolve(folder, "cuda", half) == Precision("bfloat16")


def test_names_say_what_differs_from_the_plain_data_type() -> None:
    assert FLOAT32.name == "float32"
    assert Precision("float32", tf32=True).name == "float32 with TF32"
    assert Precision("bfloat16", quantization="4bit").name == "bfloat16 with 4-bit weights"


# ---- loading
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_is_loaded_in_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(dense_layers, "MINIMUM_WEIGHTS", 0)
    model = models.load_model(saved(tmp_path / "model"), "cpu", Precision(dtype))
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
    # oneDNN's layers are for float32.
    changed = {type(module).__module__ for module in model.modules()}
    assert (dense_layers.__name__ in changed) == (dtype == "float32")


@pytest.mark.parametrize("tf32", [False, True])
def test_loading_states_whether_products_of_the_process_use_tf32(
    tmp_path: Path, tf32: bool
) -> None:
    try:
        models.load_model(saved(tmp_path / "model"), "cpu", Precision("float32", tf32=tf32))
        found = torch.backends.cuda.matmul.fp32_precision
        assert found == ("tf32" if tf32 else "ieee")
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def test_four_bits_without_a_gpu_or_bitsandbytes_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, wanted = saved(tmp_path / "model"), Precision("bfloat16", quantization="4bit")
    with pytest.raises(UserError, match=r"^inference\.quantization: 4bit needs a GPU.*$"):
        models.load_model(folder, "cpu", wanted)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^inference\.quantization: 4bit needs .* bitsandbytes.*$"):
        models.require_four_bits("cuda")


def test_a_model_that_does_not_fit_the_gpus_of_a_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"plan\.gpus_per_model: 4 GPUs .* this job sees 2"):
        models.load_model(folder, "cuda", FLOAT32, 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10_000, 20_000))
    with pytest.raises(UserError, match=r"plan\.gpus_per_model: the weights take .* in float32"):
        models.load_model(folder, "cuda", FLOAT32, 2)
    assert not models.fits_in_float32(folder, "cuda", 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**9))
    assert models.fits_in_float32(folder, "cuda", 2)
    placed = models._placement(folder, "cuda", FLOAT32, 2)
    assert placed == {"device_map": "auto", "max_memory": {0: 9 * 10**8, 1: 9 * 10**8}}
    with pytest.raises(UserError, match=r"2 parts of the model .* the first is model\.layers\.3"):
        models.require_on_gpus({"model.embed": 0, "model.layers.3": "cpu", "lm_head": "disk"})


def test_one_gpu_or_a_cpu_needs_no_placement(tmp_path: Path) -> None:
    assert models._placement(tmp_path, "cuda", FLOAT32, 1) == {}
    assert models._placement(tmp_path, "cpu", FLOAT32, 4) == {}

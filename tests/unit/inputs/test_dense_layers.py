"""A model with dense layers in oneDNN computes the same values."""

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import small_models
import torch

from ghosttrack.inputs import dense_layers, linear_kernels

IDS = torch.arange(1, 49).view(8, 6)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small model all of whose layers use oneDNN."""
    monkeypatch.setattr(dense_layers, "MINIMUM_WEIGHTS", 0)
    return small_models.make_model(request.param)


def test_all_layers_use_onednn_and_results_stay_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, weights = (
        model(IDS).logits,
        {name: weight.clone() for name, weight in model.state_dict().items()},
    )
    dense_layers.use_onednn(model)
    dense_layers.use_onednn(model)
    assert {name: weight.shape for name, weight in model.state_dict().items()} == {
        n: w.shape for n, w in weights.items()
    }
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    asked: list[tuple[bool, torch.Size]] = []

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        asked.append((weight.is_contiguous(), weight.shape))
        return linear_kernels.linear(x, weight, bias)

    monkeypatch.setattr(dense_layers, "linear", linear)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        asked.clear()
        torch.testing.assert_close(each(IDS).logits, before, rtol=1e-4, atol=1e-4)
        layers = 4 if model.config.model_type == "gpt2" else 7
        assert len(asked) == layers * small_models.LAYERS + 1  # and the unembedding
        assert all(contiguous for contiguous, _ in asked)  # else oneDNN would copy the weights


def test_hooks_still_see_every_layer(model: Any) -> None:
    seen: list[str] = []
    dense_layers.use_onednn(model)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    model(IDS)
    assert sorted(seen) == sorted(names)


@pytest.mark.skipif(not linear_kernels.ONEDNN, reason="torch was built without oneDNN")
def test_the_results_of_a_text_do_not_depend_on_the_batch(model: Any) -> None:
    dense_layers.use_onednn(model)
    whole = model(IDS).logits
    for start in range(0, 8, 2):
        assert torch.equal(model(IDS[start : start + 2]).logits, whole[start : start + 2])


def test_the_model_is_freed_with_its_last_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_layers, "MINIMUM_WEIGHTS", 0)
    model = small_models.make_model("llama")
    dense_layers.use_onednn(model)
    head = weakref.ref(model.get_output_embeddings())
    gc.collect()
    gc.disable()
    try:
        del model
        assert head() is None
    finally:
        gc.enable()


def test_small_layers_stay_as_they_are() -> None:
    model = small_models.make_model("gpt2")
    kinds = [type(module) for module in model.modules()]
    dense_layers.use_onednn(model)
    assert [type(module) for module in model.modules()] == kinds

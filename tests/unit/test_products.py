"""Products by oneDNN are those of torch, and a row's do not depend on the rows beside it."""

import pytest
import small_models
import torch

from ghosttrack import products


@pytest.mark.parametrize("shape", [(70, 24), (2, 35, 24), (0, 24), (1, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape, dtype=dtype), torch.randn(50, 24, dtype=dtype), torch.randn(50, dtype=dtype)
    for given in (None, bias):
        found, expected = products.linear(x, weight, given), torch.nn.functional.linear(x, weight, given)
        assert found.layout == torch.strided
        torch.testing.assert_close(found, expected)
    turned = weight.t().contiguous().t()  # as it comes from layers that keep their weights the other way round
    torch.testing.assert_close(products.linear(x, turned, bias), expected)


def test_a_row_comes_out_the_same_whatever_the_number_of_rows() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(300, 96), torch.randn(130, 96), torch.randn(130)
    every = products.linear(x, weight, bias)
    for rows in (2, 3, 7, 64, 299):
        assert torch.equal(products.linear(x[:rows], weight, bias), every[:rows])
        assert torch.equal(products.linear(x[-rows:], weight, bias), every[-rows:])


def test_product_of_large_and_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(40, 30), torch.randn(30, 20)
    small = products.product(left, right)
    assert torch.equal(small, left @ right)
    monkeypatch.setattr(products, "WORTH_ONCE", 40 * 30 * 20)
    asked = taken(monkeypatch)
    torch.testing.assert_close(products.product(left, right), small)
    assert asked == [(40, 30)]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_quickened_model_computes_what_it_did(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_models.make_model(kind)
    ids = torch.arange(1, 25).view(2, 12)
    before = model(ids).logits
    products.quicken(model)
    assert torch.equal(model(ids).logits, before)  # too small to be worth it
    monkeypatch.setattr(products, "WORTH", 0)
    asked = taken(monkeypatch)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-4)
    layers = {"gpt2": 4, "llama": 7}[kind] * small_models.LAYERS
    assert len(asked) == layers + 1  # and the unembedding


def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that `linear` is given from now on."""
    asked: list[tuple[int, ...]] = []
    real = products.linear

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        asked.append(tuple(x.shape))
        return real(x, weight, bias)

    monkeypatch.setattr(products, "linear", linear)
    return asked

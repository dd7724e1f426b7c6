"""oneDNN agrees with torch, and the result of a row does not depend on other rows."""

import pytest
import torch

from ghosttrack.inputs import linear_kernels


@pytest.mark.parametrize("shape", [(70, 24), (2, 35, 24), (0, 24), (1, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_equals_that_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, dtype=dtype),
        torch.randn(50, 24, dtype=dtype),
        torch.randn(50, dtype=dtype),
    )
    for given in (None, bias):
        found, expected = (
            linear_kernels.linear(x, weight, given),
            torch.nn.functional.linear(x, weight, given),
        )
        assert found.layout == torch.strided
        torch.testing.assert_close(found, expected)
    turned = (
        weight.t().contiguous().t()
    )  # as it comes from layers that keep their weights the other way round
    torch.testing.assert_close(linear_kernels.linear(x, turned, bias), expected)


@pytest.mark.skipif(not linear_kernels.ONEDNN, reason="torch was built without oneDNN")
def test_the_result_of_a_row_does_not_depend_on_the_number_of_rows() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(300, 96), torch.randn(130, 96), torch.randn(130)
    every = linear_kernels.linear(x, weight, bias)
    for rows in (2, 3, 7, 64, 299):
        assert torch.equal(linear_kernels.linear(x[:rows], weight, bias), every[:rows])
        assert torch.equal(linear_kernels.linear(x[-rows:], weight, bias), every[-rows:])


def test_a_bias_need_not_be_contiguous() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(20, 24), torch.randn(50, 24), torch.randn(100)
    torch.testing.assert_close(
        linear_kernels.linear(x, weight, bias[::2]), x @ weight.t() + bias[::2]
    )
    torch.testing.assert_close(
        linear_kernels.linear(x, weight, bias[:1].expand(50)), x @ weight.t() + bias[0]
    )


@pytest.mark.skipif(not linear_kernels.ONEDNN, reason="torch was built without oneDNN")
@pytest.mark.parametrize("shape", [(300, 96), (2, 7, 96), (1, 96), (0, 96), (96,)])
def test_the_product_without_copies_has_the_same_bits(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(130, 96), torch.randn(130)
    direct = [linear_kernels.linear(x, weight, given) for given in (None, bias)]
    monkeypatch.setattr(linear_kernels, "_DIRECT", None)
    for found, given in zip(direct, (None, bias), strict=True):
        assert torch.equal(found, linear_kernels.linear(x, weight, given))


@pytest.mark.parametrize("tensor", [0, 1, 2])
def test_every_tensor_of_a_product_has_a_gradient(tensor: int) -> None:
    torch.manual_seed(0)
    made = [torch.randn(size) for size in ((20, 24), (50, 24), (50,))]
    made[tensor].requires_grad_()
    gradients = [
        torch.autograd.grad(product(*made).square().sum(), made[tensor])[0]
        for product in (linear_kernels.linear, torch.nn.functional.linear)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)

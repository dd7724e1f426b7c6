"""Adam that absorbs the scale of the gradients, against torch's Adam on scaled gradients."""

import pytest
import torch
from torch import Tensor

from ghosttrack.sae.adam import BETA1, EPSILON, Adam, beta2

STEPS, PACE = 30, 3.0


def gradients(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    spread = 10.0 ** torch.linspace(
        -4, 1, 40, dtype=dtype
    )  # entries of the same tensor differ that much
    return (
        torch.randn(8, 40, generator=generator, dtype=dtype) * spread,
        torch.randn(6, generator=generator, dtype=dtype),
    )


def both(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = {"weight": torch.ones(8, 40, dtype=dtype), "threshold": torch.ones(6, dtype=dtype)}
    return weights, {name: tensor.clone() for name, tensor in weights.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-6)])
@pytest.mark.parametrize(
    "spread", [0, 1, 5, 15]
)  # orders of magnitude between the lengths of gradients
def test_steps_are_those_of_adam_on_scaled_gradients(
    dtype: torch.dtype, tolerance: float, spread: int
) -> None:
    ours, plain = both(dtype)
    found = Adam(
        [({"weight": ours["weight"]}, 1.0), ({"threshold": ours["threshold"]}, PACE)], 0.98
    )
    groups = [
        {"params": [plain["weight"]], "lr": 0.01},
        {"params": [plain["threshold"]], "lr": 0.01 * PACE},
    ]
    expected = torch.optim.Adam(groups, betas=(BETA1, 0.98), eps=EPSILON)
    exponents = (
        torch.empty(STEPS)
        .uniform_(0.0, spread, generator=torch.Generator().manual_seed(9))
        .tolist()
    )
    for step, exponent in enumerate(exponents):
        scale = 10.0**exponent
        # Scaled gradients have about the same norm at every step, or are zero.
        given = [each * (step != 4) / scale for each in gradients(step, dtype)]
        for tensor, gradient in zip(plain.values(), given, strict=True):
            tensor.grad = gradient * scale
        expected.step()
        found.step(given, scale, 0.01)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, plain[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("fall", [10.0, 1e3, 1e5])
def test_scales_that_fall_for_good_lose_no_digits(fall: float) -> None:
    ours, plain = both(torch.float64)
    found = Adam([(ours, 1.0)], 0.999)
    expected = torch.optim.Adam(plain.values(), lr=0.01, betas=(BETA1, 0.999), eps=EPSILON)
    for step in range(100):
        scale = fall ** -(step // 25)
        given = [each / scale for each in gradients(step, torch.float64)]
        given[1] *= step >= 80  # met late, when what its squares are added to is large
        for tensor, gradient in zip(plain.values(), given, strict=True):
            tensor.grad = gradient * scale
        expected.step()
        found.step(given, scale, 0.01)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, plain[name], rtol=0.0, atol=1e-7)


def test_a_restored_one_goes_on_bit_by_bit() -> None:
    one, _ = both(torch.float32)
    first = Adam([(one, 1.0)], 0.99)
    for step in range(3):
        first.step(gradients(step, torch.float32), 0.5 + step, 0.01)
    other = {name: tensor.clone() for name, tensor in one.items()}
    second = Adam([(other, 1.0)], 0.99)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    for step in range(3, 6):
        first.step(gradients(step, torch.float32), 0.5 + step, 0.01)
        second.step(gradients(step, torch.float32), 0.5 + step, 0.01)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name])


def test_a_short_run_forgets_squares_sooner_and_a_long_one_as_usual() -> None:
    assert beta2(10) == pytest.approx(0.98)
    assert beta2(2_000) == pytest.approx(0.995)
    assert beta2(10_000) == beta2(10**6) == pytest.approx(0.999)

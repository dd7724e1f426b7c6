"""The hand-written backward pass against autograd, and BatchTopK against a full sort."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ghosttrack.sae.batchtopk import BatchTopK
from ghosttrack.sae.engine import Engine, Parameters
from ghosttrack.sae.sparse import Code, Encoder

D_MODEL, D_SAE, K, BATCH = 24, 96, 6, 40
AUX = 1 / 32


def random_parameters(dtype: torch.dtype, seed: int = 0) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    tied = Parameters.tied(D_MODEL, D_SAE, generator, dtype)
    encoder = tied.W_enc + 0.3 * torch.randn(D_SAE, D_MODEL, generator=generator, dtype=dtype)
    biases = (0.1 * torch.randn(size, generator=generator, dtype=dtype) for size in (D_SAE, D_MODEL))
    return Parameters(encoder, tied.W_dec, *biases)


def random_batch(dtype: torch.dtype, seed: int = 1, rows: int = BATCH) -> Tensor:
    return torch.randn(rows, D_MODEL, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def engine(parameters: Parameters, micro_batch: int = 1024, dead_after_tokens: int = 10**9) -> Engine:
    return Engine(
        parameters, BatchTopK(K), aux_coefficient=AUX, dead_after_tokens=dead_after_tokens, micro_batch=micro_batch
    )


def obvious_loss(parameters: Parameters, x: Tensor, dead: Tensor) -> Tensor:
    """The loss written down as in the papers, with dense matrices and autograd."""
    W_enc, W_dec, b_enc, b_dec = parameters
    pre = (x - b_dec) @ W_enc.t() + b_enc
    top = pre.flatten().topk(K * len(x))
    code = torch.zeros_like(pre).flatten().scatter(0, top.indices, top.values.relu()).reshape_as(pre)
    error = code @ W_dec + b_dec - x
    loss = error.pow(2).sum(1).mean() / D_MODEL
    if dead.numel():
        residual = -error.detach()
        rest = pre[:, dead].relu()
        strongest = rest.topk(min(D_MODEL // 2, dead.numel()), dim=1)
        rest = torch.zeros_like(rest).scatter(1, strongest.indices, strongest.values)
        spread = (residual - residual.mean(0)).pow(2).sum(1).mean()
        loss = loss + AUX * (rest @ W_dec[dead] - residual).pow(2).sum(1).mean() / spread
    return loss


def autograd(parameters: Parameters, x: Tensor, dead: Tensor) -> tuple[float, Parameters]:
    leaves = Parameters(*(tensor.clone().requires_grad_() for tensor in parameters))
    loss = obvious_loss(leaves, x, dead)
    gradients = torch.autograd.grad(loss, list(leaves))
    return loss.item(), Parameters(*gradients)


@pytest.mark.parametrize("dead_count", [0, 5, 40], ids=["no_dead", "few_dead", "more_dead_than_auxk_takes"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_loss_and_every_gradient_equal_autograd(dead_count: int, dtype: torch.dtype, tolerance: float) -> None:
    dead = 2 * torch.arange(dead_count)
    parameters, x = random_parameters(dtype), random_batch(dtype)
    found = engine(parameters).backward(x, dead)
    loss, expected = autograd(parameters, x, dead)
    assert found.loss == pytest.approx(loss, rel=tolerance)
    for name, gradient in found.gradients._asdict().items():
        wanted = getattr(expected, name)
        assert float((gradient - wanted).norm() / wanted.norm()) < tolerance, name
    along = (expected.W_dec * parameters.W_dec).sum(1)
    assert float((found.along - along).norm() / along.norm()) < tolerance


def test_several_steps_equal_a_plain_adam_loop_with_projection_and_clipping() -> None:
    start = random_parameters(torch.float64)
    ours = engine(Parameters(*(tensor.clone() for tensor in start)))
    plain = Parameters(*(torch.nn.Parameter(tensor.clone()) for tensor in start))
    adam = torch.optim.Adam(list(plain), lr=0.01, betas=(0.9, 0.999), eps=6.25e-10)
    for step in range(5):
        x = 9.0 * random_batch(torch.float64, seed=step)  # large enough for clipping to bind
        ours.step(x, 0.01)
        adam.zero_grad()
        torch.autograd.backward(obvious_loss(plain, x, torch.empty(0, dtype=torch.int64)))
        with torch.no_grad():
            gradient = plain.W_dec.grad
            assert gradient is not None
            gradient -= (gradient * plain.W_dec).sum(1, keepdim=True) * plain.W_dec
            assert float(torch.nn.utils.clip_grad_norm_(list(plain), 1.0)) > 1.0
            adam.step()
            plain.W_dec.div_(plain.W_dec.norm(dim=1, keepdim=True))
    for name, tensor in ours.parameters._asdict().items():
        torch.testing.assert_close(tensor, getattr(plain, name).data, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ours.parameters.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=torch.float64))


def test_the_micro_batch_changes_nothing_but_rounding() -> None:
    x = random_batch(torch.float64)
    whole, parts = (engine(random_parameters(torch.float64), micro_batch=size) for size in (1024, 7))
    for _ in range(3):
        assert whole.step(x, 0.01)[:3] == pytest.approx(parts.step(x, 0.01)[:3], rel=1e-12)
    for one, other in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_feature_is_dead_after_the_given_tokens_of_silence() -> None:
    parameters = random_parameters(torch.float64)
    parameters.b_enc[:3] = -100.0
    ours = engine(parameters, dead_after_tokens=3 * BATCH)
    dead = []
    for step in range(5):
        dead.append(ours.dead_features().tolist())
        ours.step(random_batch(torch.float64, seed=step), 1e-4)
    assert dead[:3] == [[], [], []]
    assert all({0, 1, 2} <= set(found) for found in dead[3:])


def test_following_auxk_alone_lowers_it_until_dead_features_win_again() -> None:
    parameters = random_parameters(torch.float64)
    parameters.b_enc[:20] = -4.0  # low enough to lose against the others, not out of reach
    ours, x, dead = engine(parameters), random_batch(torch.float64), torch.arange(20)
    losses, wins = [], []
    for _ in range(100):
        with_auxk, without = ours.backward(x, dead), ours.backward(x, dead[:0])
        losses.append((with_auxk.loss - without.loss) / AUX)
        wins.append(int(without.active_rows[dead].sum()))
        for parameter, one, other in zip(parameters[:3], with_auxk.gradients[:3], without.gradients[:3], strict=True):
            parameter -= 0.3 / AUX * (one - other)
    assert wins[0] == 0
    assert losses[-1] < losses[0] - 0.02
    assert wins[-1] > 0


def encoder_of(pre: Tensor, rows: int) -> Encoder:
    def encoder() -> Iterator[Tensor]:
        yield from torch.split(pre, rows)

    return encoder


def dense(code: Code) -> Tensor:
    out = torch.zeros(code.rows, code.d_sae, dtype=code.value.dtype)
    out[code.row, code.column] = code.value
    return out


def test_batchtopk_keeps_exactly_the_largest_k_times_batch_whatever_it_saw_before() -> None:
    architecture = BatchTopK(K)
    for seed, scale in enumerate((1.0, 1.0, 0.01, 100.0, 1.0)):  # jumps that make the remembered cut useless
        pre = scale * torch.randn(BATCH, D_SAE, generator=torch.Generator().manual_seed(seed))
        code = architecture.select(encoder_of(pre, 16))
        top = pre.flatten().topk(K * BATCH)
        expected = torch.zeros(BATCH * D_SAE).scatter(0, top.indices, top.values).reshape_as(pre)
        assert torch.equal(dense(code), expected)
        assert code.row_start[-1] == code.value.numel() == K * BATCH


def test_batchtopk_keeps_every_positive_value_when_they_are_fewer_than_k_times_batch() -> None:
    pre = -torch.ones(4, 10)
    pre[1, 3], pre[2, 7] = 0.5, 2.0
    code = BatchTopK(5).select(encoder_of(pre, 4))
    assert torch.equal(dense(code), pre.relu())
    assert code.row_start.tolist() == [0, 0, 1, 2, 2]


def test_a_batch_in_which_nothing_fires_still_has_a_loss_and_gradients() -> None:
    parameters = random_parameters(torch.float64)
    parameters.b_enc[:] = -1e3
    x = random_batch(torch.float64)
    found = engine(parameters).backward(x, torch.arange(3))
    loss, expected = autograd(parameters, x, torch.arange(3))
    assert found.l0 == 0.0
    assert found.loss == pytest.approx(loss)
    torch.testing.assert_close(found.gradients.b_dec, expected.b_dec)

"""The hand-written backward passes against autograd, and each selection against a full sort."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sae_reference import AUX, Kind, code_of, loss_of
from torch import Tensor

import ghosttrack.sae.engine
from ghosttrack.errors import UserError
from ghosttrack.sae import sparse
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.batchtopk import BatchTopK
from ghosttrack.sae.dense_step import DenseBackEnd
from ghosttrack.sae.engine import NORM_ROW_STRIDE, THRESHOLD_RATE_FACTOR, BackEnd, Engine, back_end
from ghosttrack.sae.jumprelu import JumpReLU
from ghosttrack.sae.matryoshka import MatryoshkaBatchTopK, prefix_sizes
from ghosttrack.sae.parameters import Parameters, row_squares
from ghosttrack.sae.sparse import Code
from ghosttrack.sae.sparse_step import SparseBackEnd
from ghosttrack.sae.threshold import Threshold
from ghosttrack.sae.topk import TopK

D_MODEL, D_SAE, K, BATCH = 24, 96, 6, 40
PREFIX_SIZES = (10, 30, 31, D_SAE)
KINDS = {
    "batchtopk": Kind("batchtopk", K),
    "topk": Kind("topk", K),
    # Wide enough that many pre-activations teach a threshold, also some below zero.
    "jumprelu": Kind("jumprelu", K, bandwidth=1.5, coefficient=0.7),
    "matryoshka": Kind("matryoshka", K, prefix_sizes=PREFIX_SIZES),
}
BACK_ENDS = {"sparse": SparseBackEnd, "dense": DenseBackEnd}
NOBODY = torch.empty(0, dtype=torch.int64)


def random_parameters(dtype: torch.dtype, seed: int = 0) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    tied = Parameters.tied(D_MODEL, D_SAE, generator, dtype)
    encoder = tied.W_enc + 0.3 * torch.randn(D_SAE, D_MODEL, generator=generator, dtype=dtype)
    biases = (
        0.1 * torch.randn(size, generator=generator, dtype=dtype) for size in (D_SAE, D_MODEL)
    )
    return Parameters(encoder, tied.W_dec, *biases)


def random_thresholds(dtype: torch.dtype) -> Tensor:
    return (0.5 + 1.5 * torch.rand(D_SAE, generator=torch.Generator().manual_seed(3))).to(dtype)


def random_batch(dtype: torch.dtype, seed: int = 1, rows: int = BATCH) -> Tensor:
    return torch.randn(rows, D_MODEL, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def architecture(kind: Kind) -> Architecture:
    if kind.name == "jumprelu":
        learned = Threshold(D_SAE, K, kind.bandwidth, kind.coefficient)
        learned.value = random_thresholds(torch.float32)
        return JumpReLU(learned)
    if kind.name == "matryoshka":
        return MatryoshkaBatchTopK(K, PREFIX_SIZES)
    return TopK(D_SAE, K) if kind.name == "topk" else BatchTopK(D_SAE, K)


def engine(
    parameters: Parameters,
    *,
    kind: str = "batchtopk",
    computed: BackEnd | None = None,
    dead_after_tokens: int = 10**9,
) -> Engine:
    return Engine(
        parameters,
        architecture(KINDS[kind]),
        aux_coefficient=AUX,
        dead_after_tokens=dead_after_tokens,
        back_end=computed or SparseBackEnd(1024),
    )


def autograd(
    kind: Kind, parameters: Parameters, x: Tensor, dead: Tensor
) -> tuple[float, Parameters, Tensor]:
    leaves = Parameters(*(tensor.clone().requires_grad_() for tensor in parameters))
    threshold = random_thresholds(x.dtype).requires_grad_()
    loss = loss_of(kind, leaves, threshold, x, dead)
    *gradients, to_threshold = torch.autograd.grad(loss, [*leaves, threshold], allow_unused=True)
    return loss.item(), Parameters(*gradients), to_threshold


def apart(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "dead_count", [0, 5, 40], ids=["no_dead", "few_dead", "more_dead_than_auxk_takes"]
)
@pytest.mark.parametrize("micro_batch", [1024, 7], ids=["whole", "parts"])
@pytest.mark.parametrize("computed", BACK_ENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
def test_loss_and_every_gradient_equal_autograd(
    kind: str,
    computed: str,
    micro_batch: int,
    dead_count: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    dead = 2 * torch.arange(dead_count)
    parameters, x = random_parameters(dtype), random_batch(dtype)
    found = engine(parameters, kind=kind, computed=BACK_ENDS[computed](micro_batch)).backward(
        x, dead
    )
    loss, expected, to_threshold = autograd(KINDS[kind], parameters, x, dead)
    assert float(found.loss) == pytest.approx(loss, rel=tolerance)
    for name, gradient in found.gradients._asdict().items():
        assert apart(gradient, getattr(expected, name)) < tolerance, name
    assert apart(found.decoder_radial, (expected.W_dec * parameters.W_dec).sum(1)) < tolerance
    if kind == "jumprelu":
        assert found.threshold is not None
        assert apart(found.threshold, to_threshold) < tolerance
    else:
        assert found.threshold is None
    pre = (x - parameters.b_dec) @ parameters.W_enc.t() + parameters.b_enc
    active = code_of(KINDS[kind], pre, random_thresholds(dtype)) > 0
    assert torch.equal(found.active_rows, active.sum(0))
    assert float(found.l0) == pytest.approx(int(active.sum()) / BATCH)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_of_columns_and_chunks_of_auxk_change_nothing_but_rounding(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, x, dead = (
        random_parameters(torch.float64),
        random_batch(torch.float64),
        2 * torch.arange(40),
    )
    whole = engine(parameters, kind=kind).backward(x, dead)
    monkeypatch.setattr(sparse, "_MIN_READS", 0)
    monkeypatch.setattr(sparse, "_MIN_COLUMNS", 7)
    monkeypatch.setattr(sparse, "CACHE", 1)
    monkeypatch.setattr(ghosttrack.sae.engine, "AUXILIARY_ROWS", 16)
    assert [
        len(range(D_MODEL)[columns]) for columns in sparse.column_slices(parameters.W_dec, 0)
    ] == [7, 7, 7, 3]
    sliced = engine(parameters, kind=kind).backward(x, dead)
    for name, gradient in sliced.gradients._asdict().items():
        assert apart(gradient, getattr(whole.gradients, name)) < 1e-10, name
    for name in ("loss", "residual_ss", "error", "decoder_radial"):
        assert apart(getattr(sliced, name), getattr(whole, name)) < 1e-10, name
    assert torch.equal(sliced.active_rows, whole.active_rows)


def test_products_in_bf16_round_their_factors_only() -> None:
    parameters, x = random_parameters(torch.float32), random_batch(torch.float32)
    exact, rounded = (
        engine(parameters, computed=DenseBackEnd(1024, precision)).backward(x, NOBODY)
        for precision in ("fp32", "bf16")
    )
    for found, expected in zip(rounded.gradients, exact.gradients, strict=True):
        assert found.dtype == torch.float32
        assert (
            1e-5 < apart(found, expected) < 0.2
        )  # a value at the batch threshold may fall to the other side


def test_the_device_chooses_the_back_end() -> None:
    assert isinstance(back_end(torch.device("cpu"), 8), SparseBackEnd)
    assert isinstance(back_end(torch.device("cuda"), 8), DenseBackEnd)


class OnGpu(Tensor):
    """A tensor that claims to be on a GPU."""

    is_cuda = True


def test_an_engine_with_a_cuda_graph_is_freed_without_the_garbage_collector() -> None:
    parameters = random_parameters(torch.float32)
    made = Engine(
        parameters._replace(W_enc=parameters.W_enc.as_subclass(OnGpu)),
        BatchTopK(D_SAE, K),
        aux_coefficient=AUX,
        dead_after_tokens=1,
        back_end=DenseBackEnd(BATCH),
        cuda_graph=True,
    )
    assert made._graph is not None
    freed = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", KINDS)
def test_several_steps_equal_a_plain_adam_loop_with_projection_and_gradients_of_about_one_length(
    kind: str,
) -> None:
    start = random_parameters(torch.float64)
    ours = engine(Parameters(*(tensor.clone() for tensor in start)), kind=kind)
    plain = Parameters(*(torch.nn.Parameter(tensor.clone()) for tensor in start))
    threshold = torch.nn.Parameter(random_thresholds(torch.float64))
    groups: list[dict[str, Any]] = [
        {"params": list(plain)},
        {"params": [threshold], "lr": 0.01 * THRESHOLD_RATE_FACTOR},
    ]
    adam = torch.optim.Adam(groups, lr=0.01, betas=(0.9, 0.999), eps=6.25e-10)
    for step in range(5):
        x = (9.0, 0.5)[step % 2] * random_batch(torch.float64, seed=step)
        ours.step(x, 0.01)
        adam.zero_grad()
        torch.autograd.backward(loss_of(KINDS[kind], plain, threshold, x, NOBODY))
        with torch.no_grad():
            found = [each.grad for each in (*plain, threshold) if each.grad is not None]
            measured = [
                NORM_ROW_STRIDE**0.5 * each[::NORM_ROW_STRIDE] if each.dim() > 1 else each
                for each in found
            ]
            norm = torch.nn.utils.get_total_norm(measured)
            for each in found:
                each /= norm
            gradient = plain.W_dec.grad
            assert gradient is not None
            gradient -= (gradient * plain.W_dec).sum(1, keepdim=True) * plain.W_dec
            adam.step()
            plain.W_dec.div_(plain.W_dec.norm(dim=1, keepdim=True))
            threshold.clamp_(min=0.0)
    for name, tensor in ours.parameters._asdict().items():
        torch.testing.assert_close(tensor, getattr(plain, name).data, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(
        ours.parameters.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=torch.float64)
    )
    if ours.architecture.threshold is not None:
        torch.testing.assert_close(
            ours.architecture.threshold.value, threshold.data, rtol=1e-7, atol=1e-8
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_variance_neither_moves_the_weights_nor_spoils_what_follows(
    kind: str,
) -> None:
    ours = engine(random_parameters(torch.float32), kind=kind)
    ours.parameters.b_enc.zero_()
    ours.parameters.b_dec.zero_()
    before = [tensor.clone() for tensor in ours.parameters]
    ours.step(torch.zeros(BATCH, D_MODEL), 0.01)
    for tensor, last in zip(ours.parameters, before, strict=True):
        torch.testing.assert_close(tensor, last, rtol=1e-6, atol=1e-6)
    losses = [ours.step(random_batch(torch.float32), 0.001).fvu for _ in range(60)]
    assert losses[-1] < losses[0]
    assert all(bool(tensor.isfinite().all()) for tensor in ours.parameters)


def test_a_micro_batch_that_leaves_one_row_over_does_not_even_change_the_rounding() -> None:
    parameters, x, dead = (
        random_parameters(torch.float32),
        random_batch(torch.float32),
        torch.arange(3),
    )
    whole, nearly = (
        engine(parameters, computed=SparseBackEnd(rows)).backward(x, dead)
        for rows in (BATCH, BATCH - 1)
    )
    assert all(map(torch.equal, nearly.gradients, whole.gradients))


@pytest.mark.parametrize("computed", BACK_ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_micro_batch_changes_nothing_but_rounding(kind: str, computed: str) -> None:
    x = random_batch(torch.float64)
    whole, parts = (
        engine(
            random_parameters(torch.float64),
            kind=kind,
            computed=BACK_ENDS[computed](size),
            dead_after_tokens=BATCH,
        )
        for size in (1024, 7)
    )
    for _ in range(3):
        assert whole.step(x, 0.01)[:3] == pytest.approx(parts.step(x, 0.01)[:3], rel=1e-12)
    for one, other in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_squares_of_a_large_batch_are_not_lost_in_single_precision() -> None:
    x = torch.randn(4096, 5, 768, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        row_squares(x).sum(0), x.double().square().sum((0, 2)), rtol=1e-6, atol=0.0
    )
    ours = engine(random_parameters(torch.float32), kind="matryoshka")
    batch = random_batch(torch.float32, rows=50_000)
    found = ours.backward(batch, NOBODY)
    assert float(found.residual_ss) == pytest.approx(
        float(found.error.double().square().sum()), rel=1e-6
    )


def test_training_that_diverges_ends_with_one_error_before_anything_is_changed() -> None:
    ours, x = engine(random_parameters(torch.float32)), random_batch(torch.float32)
    ours.parameters.W_dec.mul_(1e30)
    before = ours.parameters.W_enc.clone()
    with pytest.raises(
        UserError,
        match=r"training diverged: at a learning rate of 0\.01 .*Lower sae\.learning_rate",
    ):
        ours.step(x, 0.01)
    assert torch.equal(ours.parameters.W_enc, before)


@pytest.mark.parametrize("kind", KINDS)
def test_one_number_that_is_none_ends_training_wherever_it_stands(kind: str) -> None:
    for column in range(D_MODEL):
        ours, x = engine(random_parameters(torch.float32), kind=kind), random_batch(torch.float32)
        x[3, column] = float("nan")
        before = [tensor.clone() for tensor in ours.parameters]
        with pytest.raises(UserError, match="training diverged"):
            ours.step(x, 0.01)
        assert all(map(torch.equal, ours.parameters, before))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_auxk_says_nothing_where_all_residuals_are_equal(rows: int) -> None:
    dead = torch.arange(28)
    for seed in range(6):
        ours = engine(random_parameters(torch.float32, seed), kind="topk")
        x = random_batch(torch.float32, seed, rows=1).expand(rows, -1).contiguous()
        assert float(ours.backward(x, dead).loss) == pytest.approx(
            float(ours.backward(x, NOBODY).loss), rel=1e-6
        )


def test_the_first_batch_holds_no_more_candidates_than_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[int] = []

    def counted(flat: Tensor, threshold: float) -> Tensor:
        found = sparse.positions_above(flat, threshold)
        held.append(len(found))
        return found

    monkeypatch.setattr("ghosttrack.sae.batchtopk.positions_above", counted)
    ours, x = engine(random_parameters(torch.float32)), random_batch(torch.float32, rows=2000)
    assert ours.backward(x, NOBODY).active_rows.sum() == 2000 * K
    assert len(held) == 2  # each chunk once
    assert (
        sum(held) < 1.5 * 2000 * K
    )  # half of the pre-activations are positive: eight times as many as stay


@pytest.mark.parametrize("entries", [0, 7, 8, 9, 1003])
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.98, 2.0])
def test_positions_above_a_threshold_are_all_returned_in_order(
    entries: int, threshold: float
) -> None:
    flat = torch.rand(entries, generator=torch.Generator().manual_seed(entries))
    assert torch.equal(
        sparse.positions_above(flat, threshold), (flat > threshold).nonzero().squeeze(1)
    )


@pytest.mark.parametrize("d_sae", [1, 300, 2**16, 2**16 + 1, 200_000])
def test_a_transposed_code_is_ordered_by_feature_and_then_by_row(d_sae: int) -> None:
    generator = torch.Generator().manual_seed(d_sae)
    position = (
        torch.rand(50 * d_sae, generator=generator).topk(min(400, 50 * d_sae)).indices.sort().values
    )
    code = sparse.code_from_flat(
        position, torch.rand(len(position), generator=generator), 50, d_sae
    )
    assert torch.equal(code.row * d_sae + code.column, position)
    assert torch.equal(code.row_start.diff(), torch.bincount(code.row, minlength=50))
    found = sparse.transpose(code)
    assert torch.equal(found.order, (code.column * 50 + code.row).argsort())
    for name in ("value", "row", "column"):
        assert torch.equal(getattr(found, name), getattr(code, name)[found.order])
    assert torch.equal(found.entries, torch.bincount(code.column, minlength=d_sae))
    assert torch.equal(found.start.diff(), found.entries)


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
    parameters.b_enc[:20] = -8.0  # below zero on every row
    ours, x, dead = engine(parameters), random_batch(torch.float64), torch.arange(20)
    losses, wins = [], []
    for _ in range(100):
        with_auxk, without = ours.backward(x, dead), ours.backward(x, NOBODY)
        losses.append(float(with_auxk.loss - without.loss) / AUX)
        wins.append(int(without.active_rows[dead].sum()))
        for parameter, one, other in zip(
            parameters[:3], with_auxk.gradients[:3], without.gradients[:3], strict=True
        ):
            parameter -= 0.3 / AUX * (one - other)
    assert wins[0] == 0
    assert losses[-1] < losses[0] - 0.02
    assert wins[-1] > 0


class Given:
    """An encoder whose pre-activations are at hand, in chunks."""

    def __init__(self, pre: Tensor, chunk: int) -> None:
        self.pre, self.chunk, self.rows = pre, chunk, len(pre)

    def __call__(self) -> Iterator[Tensor]:
        yield from torch.split(self.pre, self.chunk)


def codes(kind: str, pre: Tensor, chunk: int = 16) -> tuple[Tensor, Tensor]:
    """Code by the sparse and by the dense back end, both (rows, d_sae)."""
    found, given = architecture(KINDS[kind]), Given(pre, chunk)
    return dense(found.select(given)), torch.cat([part.code for part in found.activate(given)])


def dense(code: Code) -> Tensor:
    out = torch.zeros(code.rows, code.d_sae, dtype=code.value.dtype)
    out[code.row, code.column] = code.value
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_each_architecture_keeps_what_a_full_sort_keeps(kind: str) -> None:
    pre = torch.randn(BATCH, D_SAE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = code_of(KINDS[kind], pre, random_thresholds(torch.float64))
    for found in codes(kind, pre):
        assert torch.equal(found, expected)


def test_topk_keeps_exactly_k_on_every_row_also_where_values_tie() -> None:
    pre = torch.randint(1, 9, (BATCH, D_SAE), generator=torch.Generator().manual_seed(0)).double()
    for found in codes("topk", pre):
        assert torch.equal((found > 0).sum(1), torch.full((BATCH,), K))
        assert torch.equal(found.sort(dim=1).values[:, -K:], pre.sort(dim=1).values[:, -K:])


@pytest.mark.parametrize("kind", ["batchtopk", "topk"])
def test_values_that_are_not_positive_never_stay(kind: str) -> None:
    pre = -torch.ones(4, D_SAE)
    pre[1, 3], pre[2, 7] = 0.5, 2.0
    for found in codes(kind, pre):
        assert torch.equal(found, pre.relu())


def test_batchtopk_keeps_exactly_the_largest_k_times_batch_whatever_it_saw_before() -> None:
    found = BatchTopK(D_SAE, K)
    for seed, scale in enumerate(
        (1.0, 1.0, 0.01, 100.0, 1.0)
    ):  # jumps that make the last threshold useless
        pre = scale * torch.randn(BATCH, D_SAE, generator=torch.Generator().manual_seed(seed))
        code = found.select(Given(pre, 16))
        top = pre.flatten().topk(K * BATCH)
        expected = torch.zeros(BATCH * D_SAE).scatter(0, top.indices, top.values).reshape_as(pre)
        assert torch.equal(dense(code), expected)
        assert code.row_start[-1] == code.value.numel() == K * BATCH


def test_prefix_sizes_are_fractions_of_the_dictionary_without_empty_or_equal_prefixes() -> None:
    assert prefix_sizes([1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0], 2048) == (64, 192, 448, 960, 2048)
    assert prefix_sizes([0.01, 0.02, 0.5, 1.0], 10) == (1, 5, 10)


@pytest.mark.parametrize("computed", BACK_ENDS)
@pytest.mark.parametrize("kind", ["batchtopk", "topk", "matryoshka", "jumprelu"])
def test_a_batch_in_which_nothing_fires_still_has_a_loss_and_gradients(
    kind: str, computed: str
) -> None:
    parameters = random_parameters(torch.float64)
    parameters.b_enc[:] = -1e3
    x, dead = random_batch(torch.float64), torch.arange(3)
    found = engine(parameters, kind=kind, computed=BACK_ENDS[computed](16)).backward(x, dead)
    loss, expected, _ = autograd(KINDS[kind], parameters, x, dead)
    assert float(found.l0) == 0.0
    assert float(found.loss) == pytest.approx(loss)
    torch.testing.assert_close(found.gradients.b_dec, expected.b_dec)


@pytest.mark.parametrize("computed", BACK_ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_initialisation_reconstructs_at_the_right_length_with_the_wanted_l0(
    kind: str, computed: str
) -> None:
    parameters = Parameters.tied(D_MODEL, D_SAE, torch.Generator().manual_seed(0), torch.float64)
    ours, x = (
        engine(parameters, kind=kind, computed=BACK_ENDS[computed](1024)),
        random_batch(torch.float64),
    )
    ours.initialise(x)
    assert float(ours.backward(x, NOBODY).l0) == pytest.approx(K)
    xhat = ours.back_end.decode_without_bias(parameters, ours.architecture, x)
    assert float((xhat * x).sum() / xhat.pow(2).sum()) == pytest.approx(1.0)

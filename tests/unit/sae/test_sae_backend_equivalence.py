"""The comparison in check_gpu passes back ends that agree and fails back ends that do not."""

import pytest
import torch
from torch import Tensor

from ghosttrack.sae import backend_equivalence
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.batchtopk import BatchTopK
from ghosttrack.sae.dense_step import DenseBackEnd
from ghosttrack.sae.engine import BackEnd, Engine
from ghosttrack.sae.parameters import Parameters, Pass
from ghosttrack.sae.sparse_step import SparseBackEnd

BATCHES = backend_equivalence.planted_batches(0)


def engine(back_end: BackEnd, seed: int = 0) -> Engine:
    return backend_equivalence.engine(
        BatchTopK(backend_equivalence.D_SAE, backend_equivalence.K), back_end, "cpu", seed
    )


def test_sparse_and_dense_agree_to_rounding() -> None:
    found = backend_equivalence.compare(
        engine(SparseBackEnd(4096)), engine(DenseBackEnd(4096)), BATCHES
    )
    assert found.holds, found
    assert found.gradient < 1e-5
    assert found.loss > 0.0  # two computations, not one


class WrongBackEnd(DenseBackEnd):
    """Its decoder gradient is a thousandth too large."""

    def backward(
        self,
        parameters: Parameters,
        architecture: Architecture,
        x: Tensor,
        dead: Tensor | None = None,
    ) -> Pass:
        found = super().backward(parameters, architecture, x, dead)
        found.gradients.W_dec.mul_(1.001)
        return found


def test_a_wrong_gradient_and_a_reduced_precision_are_told_from_rounding() -> None:
    wrong = backend_equivalence.compare(
        engine(SparseBackEnd(4096)), engine(WrongBackEnd(4096)), BATCHES[:2]
    )
    assert 0.0009 < wrong.gradient < 0.0011
    assert not wrong.holds
    rounded = backend_equivalence.compare(
        engine(SparseBackEnd(4096)), engine(DenseBackEnd(4096, "bf16")), BATCHES[:2]
    )
    assert not rounded.holds


def test_other_initial_weights_do_not_agree() -> None:
    found = backend_equivalence.compare(
        engine(SparseBackEnd(4096)), engine(SparseBackEnd(4096), seed=1), BATCHES[:2]
    )
    assert not found.holds


def test_planted_batches_are_scaled_as_training_sees_them() -> None:
    assert BATCHES.shape == (
        backend_equivalence.STEPS,
        backend_equivalence.BATCH,
        backend_equivalence.D_MODEL,
    )
    assert float(BATCHES.pow(2).sum(2).mean()) == pytest.approx(
        backend_equivalence.D_MODEL, rel=1e-4
    )
    assert float(BATCHES.mean((0, 1)).abs().max()) < 1e-4
    assert torch.equal(BATCHES, backend_equivalence.planted_batches(0))

"""Whether a GPU computes what the CPU computes, up to rounding, on small problems."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ghosttrack.activations import hooks
from ghosttrack.inputs import sites
from ghosttrack.sae import backend_equivalence
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.batchtopk import BatchTopK
from ghosttrack.sae.dense_step import DenseBackEnd
from ghosttrack.sae.jumprelu import JumpReLU
from ghosttrack.sae.matryoshka import MatryoshkaBatchTopK
from ghosttrack.sae.model import Sae
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.sparse_step import SparseBackEnd
from ghosttrack.sae.threshold import Threshold
from ghosttrack.sae.topk import TopK
from ghosttrack.settings import SaeSettings

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# A tenth of the rounding error of fp16 (11 bits), in which activations are stored.
EXTRACTION_TOLERANCE = 2**-11 / 10
# At least the batch size: both back ends process whole batches, only the arithmetic differs.
_MICRO_BATCH = 4096


class Check(NamedTuple):
    """A relative difference, and the largest difference that rounding explains."""

    name: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference."""
        return self.difference < self.tolerance

    @property
    def line(self) -> str:
        """The result as a line of the log."""
        verdict = "agrees" if self.holds else "DIFFERS"
        return (
            f"{self.name}: {verdict}, relative difference {self.difference:.1e} (rounding: below "
            f"{self.tolerance:.0e})"
        )


def training_checks(device: torch.device) -> Iterator[Check]:
    """The dense fp32 back end on `device` against the sparse back end on the CPU, by architecture."""
    d_sae, k = backend_equivalence.D_SAE, backend_equivalence.K
    makers: dict[str, Callable[[], Architecture]] = {
        "batchtopk": lambda: BatchTopK(d_sae, k),
        "topk": lambda: TopK(d_sae, k),
        "jumprelu": lambda: JumpReLU(
            Threshold(d_sae, k, SaeSettings().bandwidth, SaeSettings().l0_coefficient)
        ),
        "matryoshka": lambda: MatryoshkaBatchTopK(k, (d_sae // 4, d_sae // 2, d_sae)),
    }
    batches = backend_equivalence.planted_batches(0)
    for name, make in makers.items():
        differences = backend_equivalence.compare(
            backend_equivalence.engine(make(), SparseBackEnd(_MICRO_BATCH), "cpu", 0),
            backend_equivalence.engine(make(), DenseBackEnd(_MICRO_BATCH, "fp32"), device.type, 0),
            batches,
        )
        yield Check(
            f"gradients of {name}", differences.gradient, backend_equivalence.GRADIENT_TOLERANCE
        )
        yield Check(
            f"{len(batches)} steps of {name}", differences.loss, backend_equivalence.LOSS_TOLERANCE
        )


def graph_check(device: torch.device) -> Check:
    """A training step as one CUDA graph against the same step launched kernel by kernel."""
    d_sae, k = backend_equivalence.D_SAE, backend_equivalence.K
    plain, graphed = (
        backend_equivalence.engine(
            BatchTopK(d_sae, k),
            DenseBackEnd(_MICRO_BATCH, "fp32"),
            device.type,
            0,
            cuda_graph=graph,
        )
        for graph in (False, True)
    )
    differences = backend_equivalence.compare(
        plain, graphed, backend_equivalence.planted_batches(0)
    )
    return Check("CUDA graph", max(differences), backend_equivalence.LOSS_TOLERANCE)


def _random_model() -> "GPT2LMHeadModel":
    """A small GPT-2 with random weights, in which no layer is nearly linear."""
    from transformers import GPT2Config, GPT2LMHeadModel

    generator = torch.Generator().manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_positions=128, n_embd=128, n_layer=4, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:  # unit variance after every product
                weight.copy_(torch.randn(weight.shape, generator=generator) * config.n_embd**-0.5)
    return model


def model_checks(device: torch.device) -> Iterator[Check]:
    """Residual streams and log-probabilities of a small GPT-2 on `device` against the CPU."""
    model = _random_model()
    config = model.config
    ids = torch.randint(
        config.vocab_size, (8, config.n_positions), generator=torch.Generator().manual_seed(0)
    )
    layers, logprobs = [], []
    for where in (torch.device("cpu"), device):
        modules = sites.site_modules(model.to(where), range(config.n_layer), "resid_post")
        with torch.inference_mode():
            with hooks.captured(modules, stop=True) as outputs:
                hooks.run_to_highest(model, ids.to(where))
                layers.append([output.float().cpu().clone() for output in outputs])
            logprobs.append(model(ids.to(where)).logits.log_softmax(-1).cpu())
    differences = [_difference(*pair) for pair in zip(*layers, strict=True)]
    yield Check("activations of every layer", max(differences), EXTRACTION_TOLERANCE)
    yield Check("log-probabilities", _difference(*logprobs), EXTRACTION_TOLERANCE)


def sae_checks(device: torch.device) -> Iterator[Check]:
    """Feature activations and reconstruction of a random SAE on `device` against the CPU."""
    generator = torch.Generator().manual_seed(0)
    d_model, d_sae = backend_equivalence.D_MODEL, backend_equivalence.D_SAE
    weights = Parameters.tied(d_model, d_sae, generator)
    rows = torch.randn(512, d_model, generator=generator)
    codes, reconstructions = [], []
    for where in (torch.device("cpu"), device):
        W_enc, W_dec, b_enc, b_dec = weights.to(where)
        threshold = torch.full((d_sae,), 0.5, device=where)
        sae = Sae(W_enc.t(), b_enc, W_dec, b_dec, threshold)
        code = sae.encode(rows.to(where))
        codes.append(code.cpu())
        reconstructions.append(sae.decode(code).cpu())
    yield Check("encoding with an SAE", _difference(*codes), backend_equivalence.GRADIENT_TOLERANCE)
    yield Check("decoding", _difference(*reconstructions), backend_equivalence.GRADIENT_TOLERANCE)


def all_checks(device: torch.device) -> Iterator[Check]:
    """Every check of agreement."""
    yield from training_checks(device)
    yield graph_check(device)
    yield from model_checks(device)
    yield from sae_checks(device)


def _difference(reference: Tensor, other: Tensor) -> float:
    return float((reference - other).norm() / reference.norm())

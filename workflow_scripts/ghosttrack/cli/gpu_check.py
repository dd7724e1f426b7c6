"""Checks of a GPU: agreement with the CPU, training speed (MFU), memory."""

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from ghosttrack.activations import hooks
from ghosttrack.errors import UserError
from ghosttrack.inputs import sites
from ghosttrack.sae import backend_equivalence, speed
from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.batchtopk import BatchTopK
from ghosttrack.sae.dense_step import DenseBackEnd
from ghosttrack.sae.engine import BackEnd, Engine, back_end
from ghosttrack.sae.jumprelu import JumpReLU
from ghosttrack.sae.matryoshka import MatryoshkaBatchTopK
from ghosttrack.sae.parameters import Parameters
from ghosttrack.sae.sparse_step import SparseBackEnd
from ghosttrack.sae.threshold import Threshold
from ghosttrack.sae.topk import TopK
from ghosttrack.sae.training import architecture
from ghosttrack.settings import SaeSettings

# A tenth of the rounding error of fp16 (11 bits), in which activations are stored.
EXTRACTION_TOLERANCE = 2**-11 / 10
# At least the batch size: both back ends process whole batches, only the arithmetic differs.
_MICRO_BATCH = 4096
_WARM_UP = 3


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


class Timing(NamedTuple):
    """Training speed on one device.

    `share` is the model FLOPs utilisation (MFU): the FLOP/s of training divided by those of plain
    matrix products of the same size on this device.
    """

    name: str
    tokens_per_second: float
    teraflops: float
    share: float
    memory_mb: float  # peak on a GPU, 0 on a CPU

    @property
    def line(self) -> str:
        """The result as a line of the log."""
        memory = f", peak memory {self.memory_mb:,.0f} MB" if self.memory_mb else ""
        return (
            f"{self.name}: {self.tokens_per_second:,.0f} tokens/s, {self.teraflops:.3g} TFLOP/s, "
            f"MFU {self.share:.0%} of plain matrix products of this size{memory}"
        )


def require_gpu() -> torch.device:
    """The GPU.

    Raises:
        UserError: torch sees no GPU.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "unset" if visible is None else repr(visible)
    raise UserError(
        f"no GPU: torch {torch.__version__} ({built}) sees none on {os.uname().nodename}, "
        f"CUDA_VISIBLE_DEVICES is {shown}. "
        "Run this on a machine with a GPU (snakemake --profile slurm check_gpu), with a torch "
        "built for its CUDA"
    )


def described(device: torch.device) -> str:
    """Name and memory of the GPU, versions of torch and CUDA."""
    about = torch.cuda.get_device_properties(device)
    return (
        f"{about.name}, {about.total_memory / 2**30:.0f} GiB; torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}"
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


def extraction_check(device: torch.device) -> Check:
    """Residual stream of a small random GPT-2 on `device` against the CPU, all layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    generator = torch.Generator().manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_positions=128, n_embd=128, n_layer=4, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            # Unit variance after every product, so that no layer is nearly linear.
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * config.n_embd**-0.5)
    ids = torch.randint(config.vocab_size, (8, config.n_positions), generator=generator)
    by_device = []
    for where in (torch.device("cpu"), device):
        modules = sites.site_modules(model.to(where), range(config.n_layer), "resid_post")
        with torch.inference_mode(), hooks.captured(modules, stop=True) as outputs:
            hooks.run_to_highest(model, ids.to(where))
            by_device.append([output.float().cpu().clone() for output in outputs])
    differences = [
        float((reference - other).norm() / reference.norm())
        for reference, other in zip(*by_device, strict=True)
    ]
    return Check("activations of every layer", max(differences), EXTRACTION_TOLERANCE)


def time_steps(
    d_model: int,
    sae: SaeSettings,
    device: torch.device,
    micro_batch: int,
    seconds: float,
    *,
    cuda_graph: bool = False,
) -> Timing:
    """Train an SAE with the batch and precision of `sae` on noise for about `seconds`."""
    generator = torch.Generator().manual_seed(0)
    step_back_end: BackEnd = back_end(device, micro_batch, sae.precision)
    engine = Engine(
        Parameters.tied(d_model, sae.d_sae, generator).to(device),
        architecture(sae),
        aux_coefficient=sae.aux_coefficient,
        dead_after_tokens=10**12,
        back_end=step_back_end,
        cuda_graph=cuda_graph,
    )
    x = torch.randn(sae.batch, d_model, generator=generator).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    engine.initialise(x)
    for _ in range(_WARM_UP):
        l0 = engine.step(x, 1e-4).l0
    steps, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not steps:
        engine.step(x, 1e-4)  # reads the loss back, which waits for the device
        steps += 1
    memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0
    rate = speed.step_flops(engine, sae.batch, l0) * steps / elapsed
    return Timing(
        f"a step of {sae.batch:,} tokens, d_model {d_model}, d_sae {sae.d_sae}, {sae.precision}"
        + (", as a CUDA graph" if cuda_graph else ""),
        sae.batch * steps / elapsed,
        rate / 1e12,
        rate / speed.matmul_rate(engine, sae.batch),
        memory,
    )

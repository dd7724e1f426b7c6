"""Whether arithmetic or memory traffic limits a step of SAE training.

The roofline model (Williams, Waterman & Patterson 2009, CACM 52(4)): the time of a step is at least
the larger of operations / (operations per second) and bytes / (bytes per second). If the arithmetic
intensity (operations per byte) is below the machine's balance, memory is the limit. Both are
counted, not measured; kernel launches, top-k selection and waiting are not included.
"""

from typing import NamedTuple

from ghosttrack.runtime import flops
from ghosttrack.settings import PlanSettings, SaeSettings

# Bytes of memory traffic per fp32 weight and step, without caches: 6 read by products (encoder
# once, decoder twice), 4 written by the products of the gradients, 4 read for the gradient norm, 12
# for the decoder's projection and normalisation (24 for half of the weights), and 28 by Adam
# (weight, gradient and two moments read; weight and moments written).
WEIGHT_BYTES = 54
# Bytes per pre-activation of a dense step: it is written, and read twice by the selection, which
# writes the code; the code is read by two products and two sums, and its gradient is written and
# read. In all ten times 4 bytes.
PREACTIVATION_BYTES = 40
# Bytes per pre-activation of a sparse step: it is written and scanned twice.
SCANNED_BYTES = 12
# Bytes per active feature and dimension of a sparse step: four passes read a row of d_model
# numbers.
GATHERED_BYTES = 16


class Step(NamedTuple):
    """Work of one optimizer step."""

    operations: float  # multiplications and additions
    traffic: float  # bytes between the accelerator and its memory

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.traffic


class Bound(NamedTuple):
    """Minimum time of a step on the machine in the settings section `plan`."""

    seconds: float
    by_memory: bool
    balance: float  # operations per byte above which arithmetic is the limit

    @property
    def name(self) -> str:
        """The limit, in words."""
        return "memory traffic" if self.by_memory else "arithmetic"


def step(sae: SaeSettings, d_model: int, device: str) -> Step:
    """Work of one step of `sae.batch` rows.

    A step is dense on a GPU (five matrix products) and sparse on a CPU (one matrix product, and
    four passes over the active features). AuxK is not counted: its work is in proportion to the
    number of dead features, which is small.
    """
    dense = device == "gpu"
    operations = flops.sae_step(sae.batch, d_model, sae.d_sae, sae.k, dense=dense)
    weights, codes = 2 * d_model * sae.d_sae, sae.batch * sae.d_sae
    traffic = WEIGHT_BYTES * weights
    if dense:
        return Step(operations, traffic + PREACTIVATION_BYTES * codes)
    active = sae.batch * sae.k * d_model
    return Step(operations, traffic + SCANNED_BYTES * codes + GATHERED_BYTES * active)


def bound(taken: Step, machine: PlanSettings) -> Bound:
    """Minimum time of a step."""
    rate, bandwidth = machine.teraflops * 1e12, machine.bandwidth_gb_s * 1e9
    arithmetic, memory = taken.operations / rate, taken.traffic / bandwidth
    return Bound(max(arithmetic, memory), memory > arithmetic, rate / bandwidth)

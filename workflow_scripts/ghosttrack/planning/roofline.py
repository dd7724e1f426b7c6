"""What bounds a step of SAE training: arithmetic or memory traffic, by counting both.

The roofline model (Williams, Waterman & Patterson 2009, CACM 52(4)): a step of so many operations and bytes takes at least the
longer of operations / (operations a second) and bytes / (bytes a second). Operations per byte, the arithmetic intensity,
say which: below the machine's balance, memory. Nothing here is measured; launches, selection and waiting come on top.
"""

from typing import NamedTuple

from ghosttrack.runtime import flops
from ghosttrack.settings import PlanSettings, SaeSettings

# Bytes of memory traffic for each fp32 weight in a step, nothing taken as cached:
# 6 read by products (the encoder's once, the decoder's twice), 4 written by the gradients' products, 4 read for the gradient's
# norm, 12 for the decoder's projection and unit rows (24, for half of the weights), 28 by Adam (weight, gradient and two
# moments read; weight and moments written).
WEIGHT_BYTES = 54
# The same for each pre-activation of a dense step: written, read twice by the selection, which writes the code; that is read
# by two products and two sums, and its gradient written and read. Ten times 4 bytes.
PREACTIVATION_BYTES = 40
# A sparse step writes pre-activations and scans them twice: 12 bytes.
SCANNED_BYTES = 12
# And each active feature reads a row of d_model numbers in four passes: 16 bytes a number.
GATHERED_BYTES = 16


class Step(NamedTuple):
    """What one optimizer step takes."""

    operations: float  # multiplications and additions
    traffic: float  # bytes

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.traffic


class Bound(NamedTuple):
    """The least time of a step on the machine that `plan` describes."""

    seconds: float
    by_memory: bool
    balance: float  # operations per byte from which on arithmetic is the limit

    @property
    def name(self) -> str:
        """What the step waits for."""
        return "memory traffic" if self.by_memory else "arithmetic"


def step(sae: SaeSettings, d_model: int, device: str) -> Step:
    """One step of `sae.batch` rows: dense on a GPU (five products), sparse on a CPU (one, and four passes over active features).

    AuxK is left out: what it takes grows with the number of dead features, which is small.
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
    """The least time of a step."""
    rate, bandwidth = machine.teraflops * 1e12, machine.bandwidth_gb_s * 1e9
    arithmetic, memory = taken.operations / rate, taken.traffic / bandwidth
    return Bound(max(arithmetic, memory), memory > arithmetic, rate / bandwidth)

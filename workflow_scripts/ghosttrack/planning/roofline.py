"""What limits extraction and SAE training: arithmetic, memory traffic, feeding, copying or writing.

The roofline model (Williams, Waterman & Patterson 2009, CACM 52(4)): the time of a step is at least
the larger of operations / (operations per second) and bytes / (bytes per second). Here it has further
parts: the CPU feeds stored activations to a training step or writes those of a forward pass, and both
are copied between host and accelerator. On a GPU the parts overlap, and the slowest one is the
bottleneck. On a CPU feeding and writing take their time from the arithmetic, so they are added. All
parts are counted, not measured; kernel launches, top-k selection and waiting are not included.
"""

from collections.abc import Sequence
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


class Part(NamedTuple):
    """One part of the work of a step or of a token."""

    name: str
    seconds: float  # on the machine in the settings section `plan`
    setting: str  # key of the rate in that section


class Bound(NamedTuple):
    """Minimum time of a step or of a token on the machine in the settings section `plan`."""

    seconds: float
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, parts: Sequence[Part], device: str) -> "Bound":
        """The bound of some parts; on a CPU all but the slower of arithmetic and memory are added.

        Args:
            parts: arithmetic and memory traffic, then others.
            device: "gpu" or "cpu".
        """
        computing, others = parts[:2], parts[2:]
        if device == "gpu":
            return cls(max(part.seconds for part in parts), tuple(parts))
        slower = max(part.seconds for part in computing)
        return cls(slower + sum(part.seconds for part in others), tuple(parts))

    @property
    def limit(self) -> Part:
        """The bottleneck: the part that takes longest."""
        return max(self.parts, key=lambda part: part.seconds)

    @property
    def name(self) -> str:
        """The bottleneck, in words."""
        return self.limit.name


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


def computing(taken: Step, machine: PlanSettings) -> list[Part]:
    """Arithmetic and memory traffic of a step."""
    return [
        Part("arithmetic", taken.operations / (machine.teraflops * 1e12), "teraflops"),
        Part("memory traffic", taken.traffic / (machine.bandwidth_gb_s * 1e9), "bandwidth_gb_s"),
    ]


def moving(name: str, stored: float, machine: PlanSettings) -> list[Part]:
    """Feeding or writing of `stored` bytes, and on a GPU their copy."""
    rate = machine.feed_gb_s if name == "feeding" else machine.write_gb_s
    key = "feed_gb_s" if name == "feeding" else "write_gb_s"
    parts = [Part(name, stored / (rate * 1e9), key)]
    if machine.device == "gpu":
        parts.append(Part("copying", stored / (machine.copy_gb_s * 1e9), "copy_gb_s"))
    return parts


def balance(machine: PlanSettings) -> float:
    """Operations per byte of memory traffic above which arithmetic takes longer."""
    return machine.teraflops * 1e12 / (machine.bandwidth_gb_s * 1e9)

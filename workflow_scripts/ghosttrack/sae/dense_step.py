"""The dense back end: five matrix products a step and nothing that waits for the device. For GPUs.

The maths is that of the sparse back end and is tested on a CPU in fp32 and fp64. What only a GPU does (TF32, bf16,
the CUDA graph) is written down here but was NOT MEASURED, and not run, on one.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ghosttrack.sae.architecture import Architecture
from ghosttrack.sae.encoder import MicroBatches
from ghosttrack.sae.parameters import Parameters, Pass

Precision = Literal["fp32", "tf32", "bf16"]


class DenseBackEnd:
    """Passes with dense codes; weights, gradients and sums stay fp32 whatever the precision of the products.

    Args:
        micro_batch: rows that are on their way at once; bounds memory only.
        precision: of the factors in a matrix product. tf32 is a property of the device and has no effect on a CPU.
    """

    def __init__(self, micro_batch: int, precision: Precision = "fp32") -> None:
        self.micro_batch, self.precision = micro_batch, precision
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """left @ right; with bf16, of rounded factors with an fp32 sum."""
        if self.precision != "bf16":
            return torch.mm(left, right)
        left, right = left.to(torch.bfloat16), right.to(torch.bfloat16)
        if left.is_cuda:
            return torch.mm(left, right, out_dtype=torch.float32)
        return torch.mm(left.float(), right.float())

    def encoder(self, parameters: Parameters, centred: Tensor) -> MicroBatches:
        """Pre-activations of centred (batch, d_model)."""
        return MicroBatches(parameters, centred, self.micro_batch, self._encode)

    def guess(self, parameters: Parameters, architecture: Architecture, x: Tensor) -> Tensor:
        """Code of x (batch, d_model) times decoder, no biases subtracted or added."""
        chunks = architecture.activate(self.encoder(parameters, x))
        return torch.cat([self.product(chunk.code, parameters.W_dec) for chunk in chunks])

    def backward(
        self,
        parameters: Parameters,
        architecture: Architecture,
        x: Tensor,
        dead: Tensor | None = None,  # noqa: ARG002 (how many there are changes, which a graph does not allow)
    ) -> Pass:
        """Loss and gradients for x (batch, d_model); nothing is kept of the features `dead`."""
        W_dec, b_dec = parameters.W_dec, parameters.b_dec
        batch, d_model = x.shape
        centred = x - b_dec  # (batch, d_model)
        encoder = self.encoder(parameters, centred)
        l0 = self._l0(architecture, encoder)
        ends = architecture.ends
        parts = list(zip((0, *ends), ends, strict=False))
        gradients = Parameters(*(torch.zeros_like(tensor) for tensor in parameters))
        along = torch.zeros_like(parameters.b_enc)
        active_rows = torch.zeros_like(along, dtype=torch.int64)
        last = torch.empty_like(x)
        squares = torch.zeros(len(parts), dtype=torch.float64, device=x.device)
        threshold, to_threshold = architecture.threshold, None
        if threshold is not None:
            to_threshold = torch.zeros_like(along)
            price, slope = threshold.penalty(l0)
        done = 0
        for pre, code in architecture.activate(encoder):
            rows = slice(done, done + len(code))
            done += len(code)
            errors = [b_dec - x[rows]]
            for start, end in parts:
                errors.append(errors[-1] + self.product(code[:, start:end], W_dec[start:end]))
            errors = errors[
                1:
            ]  # xhat - x, each (chunk, d_model), with all features up to the end of the part
            squares += torch.stack([error.pow(2).sum().double() for error in errors])
            last[rows] = errors[-1]
            active = code > 0
            to_code = torch.empty_like(code)
            slopes = torch.zeros_like(errors[0])
            for error, (start, end) in zip(reversed(errors), reversed(parts), strict=True):
                slopes = slopes.add(
                    error, alpha=2.0 / (batch * d_model * len(parts))
                )  # d loss / d xhat of the part
                gradients.W_dec[start:end] += self.product(code[:, start:end].t(), slopes)
                to_code[:, start:end] = self.product(slopes, W_dec[start:end].t())
            gradients.b_dec.add_(slopes.sum(0))
            if threshold is not None and to_threshold is not None:
                every = threshold.gradient(threshold.value, to_code, (slope / batch).to(x.dtype))
                to_threshold += (every * threshold.near(pre)).sum(0)
            to_pre = to_code.mul_(active)
            along += (code * to_pre).sum(0)
            gradients.W_enc.add_(self.product(to_pre.t(), centred[rows]))
            gradients.b_enc.add_(to_pre.sum(0))
            active_rows += active.sum(0)
        l0 = active_rows.sum().double() / batch
        loss = squares.sum() / (batch * d_model * len(parts))
        if threshold is not None:
            loss = loss + price
        return Pass(loss, squares[-1], l0, last, active_rows, gradients, along, to_threshold)

    def _encode(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.precision == "bf16":
            return self.product(x, weight.t()).add_(bias)
        return functional.linear(x, weight, bias)

    def _l0(self, architecture: Architecture, encoder: MicroBatches) -> Tensor:
        """Active features a row, (): its price must be known before the first chunk's gradients."""
        if architecture.threshold is None:
            return torch.zeros(())
        counts = [(code > 0).sum().double() for _, code in architecture.activate(encoder)]
        return torch.stack(counts).sum() / encoder.rows


class Graphed:
    """A pass over batches of one size as a CUDA graph, which spares the launches; NOT MEASURED and not run on a GPU.

    The parameters must stay where they are in memory, and a result is valid until the next call.
    """

    def __init__(self, function: Callable[[Tensor], Pass]) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor) -> Pass:
        """The function's result for x (batch, d_model)."""
        if self._graph is None:
            self._input = x.clone()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call] # warm-up: not on the stream that is captured
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._function(self._input)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = self._function(self._input)
        self._input.copy_(x)
        self._graph.replay()
        return self._output

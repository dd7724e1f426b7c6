"""The GPU back end: five matrix products per step and no device synchronisation.

The algorithm is that of the sparse back end and is tested on a CPU in fp32 and fp64. The parts that
only a GPU runs (TF32, bf16, the CUDA graph) were NOT RUN and NOT MEASURED on one.
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
    """Passes with dense codes. Weights, gradients and sums are fp32 at any precision.

    Args:
        micro_batch: rows per chunk; bounds memory only.
        precision: of the factors in a matrix product. tf32 has no effect on a CPU.
    """

    def __init__(self, micro_batch: int, precision: Precision = "fp32") -> None:
        self.micro_batch, self.precision = micro_batch, precision
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """left @ right; with bf16, the product of rounded factors with an fp32 sum."""
        if self.precision != "bf16":
            return torch.mm(left, right)
        left, right = left.to(torch.bfloat16), right.to(torch.bfloat16)
        if left.is_cuda:
            return torch.mm(left, right, out_dtype=torch.float32)
        return torch.mm(left.float(), right.float())

    def encoder(self, parameters: Parameters, centred: Tensor) -> MicroBatches:
        """Pre-activations of centred (batch, d_model)."""
        return MicroBatches(parameters, centred, self.micro_batch, self._encode)

    def decode_without_bias(
        self, parameters: Parameters, architecture: Architecture, x: Tensor
    ) -> Tensor:
        """Code of x (batch, d_model) times decoder; no bias is subtracted or added."""
        chunks = architecture.activate(self.encoder(parameters, x))
        return torch.cat([self.product(chunk.code, parameters.W_dec) for chunk in chunks])

    def backward(
        self,
        parameters: Parameters,
        architecture: Architecture,
        x: Tensor,
        dead: Tensor | None = None,  # noqa: ARG002 (its size varies, which a graph does not allow)
    ) -> Pass:
        """Loss and gradients for x (batch, d_model); pre-activations of `dead` are not kept."""
        W_dec, b_dec = parameters.W_dec, parameters.b_dec
        batch, d_model = x.shape
        centred = x - b_dec  # (batch, d_model)
        encoder = self.encoder(parameters, centred)
        l0 = self._l0(architecture, encoder)
        sizes = architecture.prefix_sizes
        parts = list(zip((0, *sizes), sizes, strict=False))  # first and last feature + 1
        gradients = Parameters(*(torch.zeros_like(tensor) for tensor in parameters))
        decoder_radial = torch.zeros_like(parameters.b_enc)
        active_rows = torch.zeros_like(decoder_radial, dtype=torch.int64)
        error = torch.empty_like(x)
        squares = torch.zeros(len(parts), dtype=torch.float64, device=x.device)
        threshold, threshold_grad = architecture.threshold, None
        if threshold is not None:
            threshold_grad = torch.zeros_like(decoder_radial)
            penalty, slope = threshold.penalty(l0)
        done = 0
        for pre, code in architecture.activate(encoder):
            rows = slice(done, done + len(code))
            done += len(code)
            errors = [b_dec - x[rows]]
            for start, end in parts:
                errors.append(errors[-1] + self.product(code[:, start:end], W_dec[start:end]))
            errors = errors[1:]  # xhat - x of each prefix, each (chunk, d_model)
            squares += torch.stack([part.pow(2).sum().double() for part in errors])
            error[rows] = errors[-1]
            active = code > 0
            code_grad = torch.empty_like(code)
            slopes = torch.zeros_like(errors[0])
            # d loss / d xhat of a feature: the sum over the prefixes that contain it.
            for prefix_error, (start, end) in zip(reversed(errors), reversed(parts), strict=True):
                slopes = slopes.add(prefix_error, alpha=2.0 / (batch * d_model * len(parts)))
                gradients.W_dec[start:end] += self.product(code[:, start:end].t(), slopes)
                code_grad[:, start:end] = self.product(slopes, W_dec[start:end].t())
            gradients.b_dec.add_(slopes.sum(0))
            if threshold is not None and threshold_grad is not None:
                grads = threshold.gradient(threshold.value, code_grad, (slope / batch).to(x.dtype))
                threshold_grad += (grads * threshold.in_kernel(pre)).sum(0)
            pre_grad = code_grad.mul_(active)
            decoder_radial += (code * pre_grad).sum(0)
            gradients.W_enc.add_(self.product(pre_grad.t(), centred[rows]))
            gradients.b_enc.add_(pre_grad.sum(0))
            active_rows += active.sum(0)
        l0 = active_rows.sum().double() / batch
        loss = squares.sum() / (batch * d_model * len(parts))
        if threshold is not None:
            loss = loss + penalty
        return Pass(
            loss, squares[-1], l0, error, active_rows, gradients, decoder_radial, threshold_grad
        )

    def _encode(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.precision == "bf16":
            return self.product(x, weight.t()).add_(bias)
        return functional.linear(x, weight, bias)

    def _l0(self, architecture: Architecture, encoder: MicroBatches) -> Tensor:
        """Active features per row, (): the gradients of the first chunk need the L0 penalty."""
        if architecture.threshold is None:
            return torch.zeros(())
        counts = [(code > 0).sum().double() for _, code in architecture.activate(encoder)]
        return torch.stack(counts).sum() / encoder.rows


class CudaGraph:
    """A pass over batches of one size as a CUDA graph. It saves kernel launches.

    NOT RUN and NOT MEASURED on a GPU. The parameters must stay where they are in memory, and a
    result is valid until the next call.
    """

    def __init__(self, function: Callable[[Tensor], Pass]) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor) -> Pass:
        """The function's result for x (batch, d_model)."""
        if self._graph is None:
            self._input = x.clone()
            # The warm-up must not run on the stream that is captured.
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._function(self._input)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # A thread may be reading the next rows onto the device meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = self._function(self._input)
        self._input.copy_(x)
        self._graph.replay()
        return self._output

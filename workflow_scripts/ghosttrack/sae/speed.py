"""Speed of training, relative to the speed of the machine's matrix products.

Only the log reports it: no result depends on it.
"""

import logging
import time

import torch

from ghosttrack.runtime import flops
from ghosttrack.sae.engine import Engine
from ghosttrack.sae.sparse_step import SparseBackEnd

log = logging.getLogger("ghosttrack")

# Below this batch size a GPU is limited by memory traffic. A step reads and writes every weight and
# both moments of Adam (28 bytes per weight) for 10 operations per weight and row. On an A100 (312
# TFLOP/s in bf16, 1.6 TB/s) arithmetic at half of the peak and traffic balance near batch 2,000. By
# this estimate batch 128 reaches about 6 % of the peak. Computed, not measured.
SMALL_BATCH = 1024
# Long enough for clocks to settle, short beside the training.
_PROBE_SECONDS = 0.1


def warn_of_small_batch(batch: int) -> None:
    """Warn that a small batch is slow on a GPU. The batch changes the result, so it is kept."""
    if batch < SMALL_BATCH:
        log.warning(
            "sae.batch is %d: on a GPU a step of fewer than %d tokens waits for memory, at about "
            "%.0f %% of the speed of batch %d (computed). The default learning rate scales with "
            "the batch, so a larger sae.batch can be tried",
            batch,
            SMALL_BATCH,
            100 * batch / SMALL_BATCH,
            SMALL_BATCH,
        )


def step_flops(engine: Engine, batch: int, l0: float) -> float:
    """Floating-point operations of a step over `batch` rows with l0 active features per row."""
    d_sae, d_model = engine.parameters.W_enc.shape
    dense = not isinstance(engine.back_end, SparseBackEnd)
    return flops.sae_step(batch, d_model, d_sae, l0, dense=dense)


def matmul_rate(engine: Engine, batch: int) -> float:
    """Operations per second of the encoder's product at the size of a step, measured now."""
    W_enc = engine.parameters.W_enc
    rows = min(engine.back_end.micro_batch, batch)
    x = torch.ones(rows, W_enc.shape[1], device=W_enc.device)

    def encode() -> None:
        # An encoder keeps its only chunk, so each product needs a new encoder.
        list(engine.back_end.encoder(engine.parameters, x)())

    encode()  # warm-up
    count, started = 0, _now(W_enc.device)
    while (elapsed := _now(W_enc.device) - started) < _PROBE_SECONDS:
        encode()
        count += 1
    return 2.0 * rows * W_enc.numel() * count / elapsed


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def report(label: str, engine: Engine, batch: int, l0: float, seconds: float) -> None:
    """Log the speed of steps that took `seconds` each, and its fraction of the matmul speed."""
    rate, limit = step_flops(engine, batch, l0) / seconds, matmul_rate(engine, batch)
    log.info(
        "%s: %.1f ms per step of %s tokens, %s tokens/s; %.1f GFLOP/s, %.0f %% of the %.1f GFLOP/s "
        "of matrix products on this machine",
        label,
        1e3 * seconds,
        f"{batch:,}",
        f"{batch / seconds:,.0f}",
        rate / 1e9,
        100 * rate / limit,
        limit / 1e9,
    )

"""How fast training ran, against what the machine's matrix products allow. For the log: results never hold it."""

import logging
import time

import torch

from ghosttrack.sae.engine import Engine
from ghosttrack.sae.sparse_step import SparseBackEnd

log = logging.getLogger("ghosttrack")

# Below it a GPU waits for its memory: a step reads and writes every weight and both moments of Adam (28 bytes a weight)
# for 10 operations a weight and row. On an A100 (312 TFLOP/s in bf16, 1.6 TB/s) the two balance near batch 2,000 at half
# of the peak; by this arithmetic batch 128 reaches about 6 % of it. Computed, not measured.
SMALL_BATCH = 1024
# Long enough for clocks to settle, too short to notice.
_PROBE_SECONDS = 0.1


def warn_of_small_batch(batch: int) -> None:
    """Say what a small optimizer batch costs on a GPU; it is science, so nothing changes it."""
    if batch < SMALL_BATCH:
        log.warning(
            "sae.batch is %d: on a GPU a step of fewer than %d tokens waits for memory, at about %.0f %% of the speed that "
            "batch %d has (computed); the learning-rate rule allows a larger one",
            batch,
            SMALL_BATCH,
            100 * batch / SMALL_BATCH,
            SMALL_BATCH,
        )


def operations(engine: Engine, batch: int, l0: float) -> float:
    """Multiplications and additions that a step over `batch` rows cannot do without.

    Sparse: one product of batch x d_model x d_sae, and four that touch the l0 active features of each row
    only. Dense: five products.
    """
    d_sae, d_model = engine.parameters.W_enc.shape
    product = 2.0 * batch * d_model
    return (
        product * (d_sae + 4.0 * l0)
        if isinstance(engine.back_end, SparseBackEnd)
        else 5.0 * product * d_sae
    )


def matmul_rate(engine: Engine, batch: int) -> float:
    """Operations a second of the encoder's product at the size of a step, measured now on this machine."""
    W_enc = engine.parameters.W_enc
    rows = min(engine.back_end.micro_batch, batch)
    encoder = engine.back_end.encoder(
        engine.parameters, torch.ones(rows, W_enc.shape[1], device=W_enc.device)
    )
    list(encoder())  # warm-up; the encoder keeps its one chunk, so each round needs its own
    count, began = 0, _now(W_enc.device)
    while (elapsed := _now(W_enc.device) - began) < _PROBE_SECONDS:
        encoder = engine.back_end.encoder(
            engine.parameters, torch.ones(rows, W_enc.shape[1], device=W_enc.device)
        )
        list(encoder())
        count += 1
    return 2.0 * rows * W_enc.numel() * count / elapsed


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def report(label: str, engine: Engine, batch: int, l0: float, seconds: float) -> None:
    """Log the speed of steps that took `seconds` each, and its share of the limit."""
    needed, limit = operations(engine, batch, l0) / seconds, matmul_rate(engine, batch)
    log.info(
        "%s: %.1f ms a step of %s tokens, %s tokens/s; %.1f GFLOP/s of what matrix products reach here, %.1f (%.0f %%)",
        label,
        1e3 * seconds,
        f"{batch:,}",
        f"{batch / seconds:,.0f}",
        needed / 1e9,
        limit / 1e9,
        100 * needed / limit,
    )

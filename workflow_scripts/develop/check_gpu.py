"""Compare the GPU with the CPU on small problems, and time a training step of the model's SAE."""

import logging

from ghosttrack.cli.gpu import agreement, card, speed
from ghosttrack.errors import UserError
from ghosttrack.runtime import job
from ghosttrack.settings import SaeSettings

log = logging.getLogger("ghosttrack")


def main(*, d_model: int, sae: SaeSettings, micro_batch: int = 4096, seconds: float = 10.0) -> None:
    """Log one line a check; raise when there is no GPU, or when it does not agree with the CPU."""
    device = card.require_gpu()
    log.info("%s", card.described(device))
    checks = list(agreement.all_checks(device))
    for check in checks:
        log.info("%s", check.line)
    for cuda_graph in (False, True):
        timing = speed.time_steps(d_model, sae, device, micro_batch, seconds, cuda_graph=cuda_graph)
        log.info("%s", timing.line)
    if failed := [check.name for check in checks if not check.holds]:
        raise UserError(
            f"GPU and CPU do not agree in: {', '.join(failed)}. Do not train on this GPU; train without it "
            "(CUDA_VISIBLE_DEVICES= ) and report the lines above with the GPU's name and the versions in the first line"
        )


if __name__ == "__main__":
    job.run(main, globals())

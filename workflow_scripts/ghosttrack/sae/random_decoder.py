"""The null of a random decoder: an SAE that learns no directions.

Its decoder has random unit directions that training does not change. Encoder, biases and threshold
are fitted as those of the run's SAE, with as many features and the same L0. What a claim about SAEs
owes to learned features must exceed what this null gives.
"""

from ghosttrack.sae.model import Sae
from ghosttrack.settings import SaeSettings


def null_settings(settings: SaeSettings, trained: Sae, l0: float, rows: int) -> SaeSettings:
    """Settings of the null's training, for a run whose SAEs may be pretrained.

    The architecture is batchtopk, so that its L0 on the training rows is exact.

    Args:
        trained: the run's SAE of the same layer.
        l0: mean number of active features of `trained` on held-out tokens.
        rows: included training rows, the most that a batch can hold.
    """
    return settings.model_copy(
        update={
            "architecture": "batchtopk",
            "d_sae": trained.d_sae,
            "k": min(max(round(l0), 1), trained.d_sae - 1),
            "batch": min(settings.batch, rows),
        }
    )

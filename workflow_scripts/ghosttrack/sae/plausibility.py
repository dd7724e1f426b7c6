"""Whether a pretrained autoencoder reconstructs these activations as one that was trained on them would."""

from collections.abc import Mapping
from typing import Any

from ghosttrack.sae.quality import Quality

# ASSUME: a published autoencoder leaves less than half of the variance; one of another model or layer leaves all or more.
HIGHEST_FVU = 0.9
# ASSUME: another text moves the number of active features by less; another scale of the activations by far more.
L0_FACTOR = 3.0
_CAUSES = (
    "likely causes: it was trained on another model, on another layer or site, or on activations that were normalised or "
    "centred in another way; check model_name, hook_name and normalize_activations in its cfg.json, and sae.source"
)


def warning(found: Quality, metadata: Mapping[str, Any]) -> str | None:
    """What is implausible about the figures of a pretrained autoencoder on held-out rows, with the likely causes.

    Args:
        found: its figures.
        metadata: of its cfg.json; `pretrained` says where it came from, `k` or `l0` how many features it promises.
    Returns:
        None where it was trained here, or where nothing is implausible.
    """
    if not metadata.get("pretrained"):
        return None
    said = []
    if not found.reconstruction.fvu <= HIGHEST_FVU:
        said.append(f"it leaves {found.reconstruction.fvu:.3g} of the variance unexplained (fvu)")
    promised, l0 = metadata.get("k") or metadata.get("l0"), found.sparsity.l0
    if (
        isinstance(promised, int | float)
        and promised > 0
        and not 1 / L0_FACTOR <= l0 / promised <= L0_FACTOR
    ):
        said.append(
            f"{l0:.3g} features are active per token (l0), and its cfg.json promises {promised:.3g}"
        )
    return (
        f"the pretrained autoencoder does not fit these activations: {'; '.join(said)}; {_CAUSES}"
        if said
        else None
    )

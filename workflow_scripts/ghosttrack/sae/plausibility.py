"""Whether a pretrained autoencoder fits the activations of this model and layer."""

from collections.abc import Mapping
from typing import Any

from ghosttrack.sae.quality import Quality

# ASSUME: a published autoencoder has an FVU below .5 on its own activations, and near 1 or above on
# those of another model or layer.
MAX_FVU = 0.9
# ASSUME: L0 changes by a smaller factor on other text, and by a much larger one on activations of
# another scale.
L0_FACTOR = 3.0
_CAUSES = (
    "likely causes: it was trained on another model, on another layer or site, or on activations "
    "that were normalised or centred in another way; check model_name, hook_name and "
    "normalize_activations in its cfg.json, and sae.source"
)


def warning(quality: Quality, metadata: Mapping[str, Any]) -> str | None:
    """Implausible metrics of a pretrained autoencoder on held-out rows, with the likely causes.

    Args:
        quality: its metrics.
        metadata: from its cfg.json. `pretrained` is its origin, `k` or `l0` its number of active
            features.
    Returns:
        None if it was trained by this workflow, or if all metrics are plausible.
    """
    if not metadata.get("pretrained"):
        return None
    problems = []
    if not quality.reconstruction.fvu <= MAX_FVU:
        problems.append(
            f"it leaves {quality.reconstruction.fvu:.3g} of the variance unexplained (fvu)"
        )
    expected, l0 = metadata.get("k") or metadata.get("l0"), quality.sparsity.l0
    if (
        isinstance(expected, int | float)
        and expected > 0
        and not 1 / L0_FACTOR <= l0 / expected <= L0_FACTOR
    ):
        problems.append(
            f"{l0:.3g} features are active per token (l0), but its cfg.json says {expected:.3g}"
        )
    if not problems:
        return None
    return (
        "the pretrained autoencoder does not fit these activations: "
        f"{'; '.join(problems)}; {_CAUSES}"
    )

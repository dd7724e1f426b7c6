"""The arms of the ablations and of the tuning: which metrics they use and what they change."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.settings import AblationSettings, Settings
from ghosttrack.tracks.track_metrics import NAMES

# The run's tracks and settings, with which every arm is compared.
BASELINE = "baseline"
# Families in the order in which the cumulative arms add them.
FAMILIES = tuple(dict.fromkeys(name.split("_")[0] for name in NAMES))
# Nulls of the association, and the tracks with one detection per token and layer.
NULLS = {"untracked": "untracked", "random": "random", "permuted": "permuted"}
SINGLE = "single_hypothesis"
# Kinds of arms that every chosen detector scores, because they are few and important.
THOROUGH = frozenset((BASELINE, "tracking"))
# Settings of the links: an arm that changes one needs new links.
LINK_SETTINGS = frozenset(("links", "gate_quantile", "neighbours"))


class AblationArm(NamedTuple):
    """An arm of the ablations or of the tuning."""

    kind: str
    columns: tuple[str, ...]  # metrics that the detectors see
    variant: str = "default"  # of the tracker
    changes: Mapping[str, Any] = {}  # tracking settings that differ from the run's

    @property
    def tracked(self) -> bool:
        """Whether the arm needs new tracks."""
        return self.variant != "default" or bool(self.changes)

    @property
    def thorough(self) -> bool:
        """Whether every chosen detector scores the arm.

        The many arms that leave out some metrics are scored by the first detector alone.
        """
        return self.kind in THOROUGH

    @property
    def recompute_links(self) -> bool:
        """Whether the arm needs new links."""
        return not LINK_SETTINGS.isdisjoint(self.changes)


def columns_of(*families: str) -> tuple[str, ...]:
    """Metrics of some families, in the order of the tables."""
    return tuple(name for name in NAMES if name.split("_")[0] in families)


def ablation_arms(settings: Settings) -> dict[str, AblationArm]:
    """Every arm of the ablations by name, the baseline first."""
    _require_gated(settings, "ablations")
    chosen = settings.ablations
    columns = columns_of(*chosen.families)
    return {BASELINE: AblationArm(BASELINE, columns), **dict(_ablations(chosen, columns))}


def _ablations(
    chosen: AblationSettings, columns: tuple[str, ...]
) -> Iterator[tuple[str, AblationArm]]:
    families = [name for name in FAMILIES if name in chosen.families]
    if "family" in chosen.kinds and len(families) > 1:
        for left_out in families:
            yield (
                f"without_{left_out}",
                AblationArm(
                    "family", tuple(name for name in columns if name.split("_")[0] != left_out)
                ),
            )
    if "only" in chosen.kinds:
        for family in FAMILIES:
            yield f"only_{family}", AblationArm("only", columns_of(family))
    if "cumulative" in chosen.kinds:
        for count in range(1, len(FAMILIES) + 1):
            yield (
                f"up_to_{FAMILIES[count - 1]}",
                AblationArm("cumulative", columns_of(*FAMILIES[:count])),
            )
    if "feature" in chosen.kinds and len(columns) > 1:
        for feature in columns:
            yield (
                f"without_{feature}",
                AblationArm("feature", tuple(name for name in columns if name != feature)),
            )
    if "tracking" in chosen.kinds:
        for name, variant in NULLS.items():
            yield name, AblationArm("tracking", columns, variant)
        yield SINGLE, AblationArm("tracking", columns, changes={"top_k": 1})


def tuning_arms(settings: Settings) -> dict[str, AblationArm]:
    """The baseline, arms that change one tracking setting each, and the nulls.

    Links that the run's dictionaries do not support are left out.
    """
    _require_gated(settings, "tuning")
    current, columns = settings.tracking.model_dump(), columns_of(*settings.ablations.families)
    arms = {BASELINE: AblationArm(BASELINE, columns)}
    for setting, values in settings.tuning.model_dump().items():
        for value in values:
            ruled_out = value == "identity" and settings.sae.dictionaries == "independent"
            if value != current[setting] and not ruled_out:
                name = re.sub(r"[^a-z0-9_]", "_", f"{setting}_{value}")
                arms[name] = AblationArm("tuning", columns, changes={setting: value})
    return arms | {
        name: AblationArm("tracking", columns, variant) for name, variant in NULLS.items()
    }


def _require_gated(settings: Settings, target: str) -> None:
    if settings.tracking.mode == "original":
        raise UserError(
            f"target {target} needs tracking.mode: gated, found original: set tracking.mode to "
            "gated or leave the target out"
        )
    if "default" not in settings.tracking.variants:
        raise UserError(
            f"target {target} compares every arm with the tracker, but tracking.variants has only "
            "nulls: add default to it"
        )

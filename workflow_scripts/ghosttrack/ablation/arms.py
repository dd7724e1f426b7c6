"""The arms of the ablations and of the tuning: what each one leaves out or changes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.settings import AblationSettings, Settings
from ghosttrack.tracks.signals import NAMES

# The run's own tracks and settings: what every arm is compared with.
BASELINE = "baseline"
# Families in the order in which the cumulative arms add them.
FAMILIES = tuple(dict.fromkeys(name.split("_")[0] for name in NAMES))
# Nulls of the association, and what is left of the tracks when one feature a layer is all there is.
NULLS = {"untracked": "untracked", "random": "random", "permuted": "permuted"}
SINGLE = "single_hypothesis"
# Kinds of arms that are few, and whose answer should not hang on one detector.
THOROUGH = frozenset((BASELINE, "tracking"))
# Settings that need links of their own, compared anew.
RELINKING = frozenset(("links", "gate_quantile", "neighbours"))


class Arm(NamedTuple):
    """columns: metrics that the detectors see; variant: of the tracker; changes: tracking settings that are not the run's."""

    kind: str
    columns: tuple[str, ...]
    variant: str = "default"
    changes: Mapping[str, Any] = {}

    @property
    def tracked(self) -> bool:
        """Whether it needs tracks of its own."""
        return self.variant != "default" or bool(self.changes)

    @property
    def thorough(self) -> bool:
        """Whether every chosen detector scores it; of the many arms without a part of the metrics the first one does."""
        return self.kind in THOROUGH

    @property
    def relinked(self) -> bool:
        """Whether it needs links of its own."""
        return not RELINKING.isdisjoint(self.changes)


def columns_of(*families: str) -> tuple[str, ...]:
    """Metrics of some families, in the order of the tables."""
    return tuple(name for name in NAMES if name.split("_")[0] in families)


def ablation_arms(settings: Settings) -> dict[str, Arm]:
    """Every arm of the ablations by name, the baseline first."""
    _require_gated(settings, "ablations")
    chosen = settings.ablations
    own = columns_of(*chosen.families)
    return {BASELINE: Arm(BASELINE, own), **dict(_ablations(chosen, own))}


def _ablations(chosen: AblationSettings, own: tuple[str, ...]) -> Iterator[tuple[str, Arm]]:
    families = [name for name in FAMILIES if name in chosen.families]
    if "family" in chosen.kinds and len(families) > 1:
        for left_out in families:
            yield (
                f"without_{left_out}",
                Arm("family", tuple(name for name in own if name.split("_")[0] != left_out)),
            )
    if "only" in chosen.kinds:
        for family in FAMILIES:
            yield f"only_{family}", Arm("only", columns_of(family))
    if "cumulative" in chosen.kinds:
        for count in range(1, len(FAMILIES) + 1):
            yield f"up_to_{FAMILIES[count - 1]}", Arm("cumulative", columns_of(*FAMILIES[:count]))
    if "feature" in chosen.kinds and len(own) > 1:
        for feature in own:
            yield (
                f"without_{feature}",
                Arm("feature", tuple(name for name in own if name != feature)),
            )
    if "tracking" in chosen.kinds:
        for name, variant in NULLS.items():
            yield name, Arm("tracking", own, variant)
        yield SINGLE, Arm("tracking", own, changes={"top_k": 1})


def tuning_arms(settings: Settings) -> dict[str, Arm]:
    """The run's own settings, one setting at a time changed, and the nulls; links that the dictionaries rule out are left out."""
    _require_gated(settings, "tuning")
    own, columns = settings.tracking.model_dump(), columns_of(*settings.ablations.families)
    arms = {BASELINE: Arm(BASELINE, columns)}
    for setting, values in settings.tuning.model_dump().items():
        for value in values:
            ruled_out = value == "identity" and settings.sae.dictionaries == "independent"
            if value != own[setting] and not ruled_out:
                name = f"{setting}_{value}".replace(".", "_")
                arms[name] = Arm("tuning", columns, changes={setting: value})
    return arms | {name: Arm("tracking", columns, variant) for name, variant in NULLS.items()}


def _require_gated(settings: Settings, target: str) -> None:
    if settings.tracking.mode == "original":
        raise UserError(
            f"{target}: they change settings of tracking.mode: gated, and this run has the original's association"
        )
    if "default" not in settings.tracking.variants:
        raise UserError(
            f"{target}: every arm is compared with the tracker, and tracking.variants has nulls alone; add default to it"
        )

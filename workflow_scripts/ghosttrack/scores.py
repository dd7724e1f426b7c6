"""The tables of `evaluation/` as their readers know them: the names of columns and signals, in one place."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack.errors import UserError
from ghosttrack.runtime import tables

# One row per (dataset, mode, signal).
METRICS = (
    "dataset",
    "mode",
    "signal",
    "family",
    "n",
    "groups",
    "prevalence",
    "auroc",
    "auroc_low",
    "auroc_high",
    "auprc",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "ece",
    "brier",
)
# One row per claim: ours minus the control.
LEDGER = (
    "claim",
    "dataset",
    "mode",
    "ours",
    "control",
    "auroc_ours",
    "auroc_control",
    "difference",
    "difference_low",
    "difference_high",
    "p_holm",
    "n",
    "groups",
    "verdict",
)
# One row per check and data set.
LEAK_AUDIT = ("dataset", "mode", "check", "value", "low", "high", "verdict")
# One row per data set and layer, and one per layer over all answer tokens.
ANSWERS = ("dataset", "layer", "tokens", "massive_tokens", "l0", "fvu", "fvu_token_median")
# One row per point: ROC has x = false positive rate, y = true positive rate; PR has x = recall, y = precision.
CURVES = ("dataset", "mode", "signal", "curve", "x", "y")
# One row per bin of equal mass.
CALIBRATION = ("dataset", "mode", "signal", "bin", "n", "predicted", "observed")

# One row per pair of neighbouring layers: links on held-out text.
LINKS = (
    "layer",
    "next_layer",
    "tokens",
    "links",
    "permuted_links",
    "links_per_token",
    "permuted_links_per_token",
    "next_fires",
    "next_fires_shuffled_links",
)
# One row per removal of features from the running model; none where no detector could be fitted.
EXPLANATIONS = (
    "removed",
    "features",
    "n",
    "groups",
    "change",
    "change_low",
    "change_high",
    "beyond_random",
    "beyond_random_low",
    "beyond_random_high",
    "agreement",
)
# One row per training, tested data set and signal; one per tested data set and control, all trained on other relations.
TRANSFER = ("trained_on", "dataset", "signal", "n", "groups", "auroc", "auroc_low", "auroc_high")
LEFT_OUT = (
    "dataset",
    "control",
    "n",
    "groups",
    "auroc_ours",
    "auroc_control",
    "difference",
    "difference_low",
    "difference_high",
    "verdict",
)

ESTABLISHED, NOT_ESTABLISHED, ARTEFACT = "established", "not established", "artefact"
# Names of the rows that stand for several data sets, and the two claims that a summary speaks of.
ALL_GIVEN, ALL_GENERATED = "all_strict", "generated"
# The answer tokens of all data sets together.
ALL_ANSWERS = "all_answers"
HEADLINE, TRACKING = "the detector beats its best control", "tracking metrics add to the detector"
DETECTOR, TEXT_ONLY, LEAK_CONTROL = "ghosttrack", "text_only", "embedding_probe"
# What follows TRACKING in the claim that it is the tracks that add, and not what their null has as well.
MORE_THAN = " more than their"
OUTPUT_ALONE = "output_regression"


class Shown(NamedTuple):
    """A signal that the report shows beside the others: its name in the tables, its label, its colour and mark."""

    signal: str
    label: str
    colour: str
    marker: str


# Order = reading order. Colours are told apart by colour-blind readers, and every one has a mark of its own.
SHOWN = (
    Shown(DETECTOR, "detector", "#1f5fbf", "o"),
    Shown("answer_logprob_mean", "answer log-probability", "#c2571a", "s"),
    Shown("raw_probe", "raw-activation probe", "#1a7f5a", "D"),
    Shown(TEXT_ONLY, "text only", "#6e7781", "^"),
)


def read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a csv table and see that it has `columns`; it may have more.

    Raises:
        UserError: naming the file and what it lacks.
    """
    try:
        table = tables.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run again, its job remakes it") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(
            f"{path} is not a readable csv table ({error}): delete it and run again"
        ) from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"{path}: expected the columns {', '.join(columns)}; "
            f"{', '.join(missing)} not found: delete the file and run again"
        )
    return table


def row_of(metrics: pd.DataFrame, dataset: str, signal: str) -> dict[str, Any] | None:
    """The one row of a data set and signal, or None."""
    found = metrics[(metrics["dataset"] == dataset) & (metrics["signal"] == signal)]
    return None if found.empty else {str(key): value for key, value in found.iloc[0].items()}


class Kinds(NamedTuple):
    """Data sets by what they can show, each in the order given."""

    strict: list[str]
    leaky: list[str]
    generated: list[str]
    control: list[str]
    skipped: list[str]


def kinds(metrics: pd.DataFrame, datasets: list[str], controls: list[str]) -> Kinds:
    """Sort data sets: not run, positive controls, generated answers, and given texts that do or do not leak.

    A set of given texts is strict when the text-only interval covers 0.5: its label cannot be read off the text.
    """
    sorted_: dict[str, list[str]] = {
        "strict": [],
        "leaky": [],
        "generated": [],
        "control": [],
        "skipped": [],
    }
    for dataset in datasets:
        modes = set(metrics.loc[metrics["dataset"] == dataset, "mode"])
        text = row_of(metrics, dataset, TEXT_ONLY)
        detector = row_of(metrics, dataset, DETECTOR)
        if detector is None or pd.isna(detector["auroc"]):
            sorted_["skipped"].append(dataset)
        elif dataset in controls:
            sorted_["control"].append(dataset)
        elif modes == {"generated"}:
            sorted_["generated"].append(dataset)
        elif text is not None and text["auroc_low"] <= 0.5 <= text["auroc_high"]:
            sorted_["strict"].append(dataset)
        else:
            sorted_["leaky"].append(dataset)
    return Kinds(**sorted_)

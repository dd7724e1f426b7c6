"""How often a false remark misleads the output, and whether activations reveal more than it does."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.facts import remarks
from ghosttrack.facts.examples import same_text
from ghosttrack.report.numbers import percent, small
from ghosttrack.report.verdicts import Row, row_of

# What the output does after a remark, and its number in the explorer.
MISLED, NOT_MISLED, TRUE_REMARK = 0, 1, 2
# Claims of the sentence, and what activations add to.
_BEYOND = {
    registry.ADDS_TO_PASS: "all output and text of the same pass",
    registry.BEYOND_CLOSED_BOOK: "closed book and context together",
}


class Followed(NamedTuple):
    """Number of prompts after a false remark, and of those whose output follows it."""

    asked: int
    followed: int


def sway(examples: pd.DataFrame, controls: pd.DataFrame | None) -> list[int | None]:
    """What the output does after the remark of each text: MISLED, NOT_MISLED, TRUE_REMARK, or None.

    A generated answer follows the remark if it gives the remark's answer. Of a given text, the
    output follows the remark if its logit is larger for the remark's answer than for the other
    candidate. None: no remark, or no comparison of the candidates.

    Args:
        controls: columns id, compared, difference of candidates/DATASET.controls.parquet; None if
            candidates are not compared.
    """
    if "remark" not in examples:
        return [None] * len(examples)
    with_remark = examples[examples["remark"] != ""]
    agrees = dict(zip(with_remark["id"], remarks.agreement(with_remark), strict=True))
    difference: dict[str, float] = {}
    if controls is not None:
        known = controls[controls["compared"]]
        difference = dict(zip(known["id"], known["difference"], strict=True))
    found: list[int | None] = []
    for row in examples.to_dict("records"):
        generated, states = row["mode"] == "generated", agrees.get(row["id"])
        if states is None or not (generated or row["id"] in difference):
            found.append(None)
            continue
        if generated:
            gold = {same_text(str(answer)) for answer in row["gold"]}
            false, follows = same_text(row["remark_answer"]) not in gold, states
        else:
            false = states == (row["label"] == 1)
            follows = (difference[row["id"]] > 0) == states
        found.append((MISLED if follows else NOT_MISLED) if false else TRUE_REMARK)
    return found


def prompts(tables: Iterable[tuple[pd.DataFrame, pd.DataFrame]]) -> Followed:
    """Prompts of given texts after a false remark, each counted once.

    Args:
        tables: examples and controls of each data set, as for `sway`.
    """
    asked = followed = 0
    for examples, controls in tables:
        table = examples.assign(sway=sway(examples, controls)).drop_duplicates("prompt")
        asked += int(table["sway"].isin([MISLED, NOT_MISLED]).sum())
        followed += int((table["sway"] == MISLED).sum())
    return Followed(asked, followed)


def answers(labels: Mapping[str, Mapping[str, Any]]) -> Followed:
    """The model's own answers after a false remark, and those that repeat it, of all data sets."""
    counted = [counts.get("remarks", {}).get("false", {}) for counts in labels.values()]
    return Followed(
        sum(each.get("asked", 0) for each in counted),
        sum(each.get("followed", 0) for each in counted),
    )


def sentence(rows: Sequence[Row], given: Followed, own: Followed) -> str:
    """What texts after remarks show, in one sentence; "" without such texts.

    Args:
        rows: of the ledger.
        given: from `prompts`; own: from `answers`.
    """
    parts = []
    if given.asked:
        share = percent(given.followed / given.asked)
        parts.append(f"the output prefers the false answer on {share} of {given.asked:,} prompts")
    if own.asked:
        share = percent(own.followed / own.asked)
        parts.append(f"{share} of {own.asked:,} answers of the model repeat it")
    how_often = "After a false remark, " + " and ".join(parts) if parts else ""
    judged = [
        (words, row)
        for claim, words in _BEYOND.items()
        if (row := row_of(rows, registry.ALL_MISLED, claim))
    ]
    added = [
        f"{small(row['difference'])} AUROC to {words}"
        for words, row in judged
        if row["verdict"] == registry.ESTABLISHED
    ]
    open_ = [words for words, row in judged if row["verdict"] != registry.ESTABLISHED]
    inside = ", but ".join(
        [
            *(["activations add " + " and ".join(added)] if added else []),
            *(["no gain over " + " or over ".join(open_) + " is established"] if open_ else []),
        ]
    )
    if not inside:
        return f"{how_often}." if how_often else ""
    return f"{how_often}; {inside}." if how_often else f"After remarks, {inside}."

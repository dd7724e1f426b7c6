"""The claim ledger in plain words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import pandas as pd

from ghosttrack import scores as registry

# The difference axis reaches at least this far to both sides, so that small noise looks small.
LEAST_REACH = 0.1
SCOPES = {
    registry.ALL_GIVEN: "Over all given texts",
    registry.ALL_GENERATED: "Over the model's own answers",
}


class Gain(NamedTuple):
    """A difference with its interval, as a mark in a lane."""

    label: str
    kind: str
    marker: str
    value: float
    low: float
    high: float


class Axis(NamedTuple):
    """The shared axis of all drawn differences."""

    low: float
    high: float
    chance: float
    ticks: list[float]


class Claim(NamedTuple):
    """One line of the ledger: what is claimed, its verdict, the numbers behind it, and the difference to draw."""

    title: str
    verdict: str
    numbers: str
    reason: str
    point: Gain


class Scope(NamedTuple):
    """The claims about several data sets together, or those about one."""

    title: str
    claims: list[Claim | None]


class Verdict(NamedTuple):
    """What a run has shown.

    summary: one to four sentences; findings: claims about data sets together, by verdict; scopes: the same in full;
    titles, lines: every claim, by its title, on every data set.
    """

    summary: str
    findings: dict[str, list[str]]
    scopes: list[Scope]
    titles: list[str]
    lines: list[Scope]
    axis: Axis

    @classmethod
    def of(cls, ledger: pd.DataFrame, kinds: registry.DatasetKinds) -> Self:
        """Put a ledger into words."""
        rows = ledger.to_dict("records")
        claims = list(dict.fromkeys(row["claim"] for row in rows))
        pooled = {name: [row for row in rows if row["dataset"] == name] for name in SCOPES}
        drawn = [row for found in pooled.values() for row in found]
        datasets = [name for names in kinds for name in names]
        return cls(
            summary(rows, kinds),
            findings(rows, kinds),
            [
                Scope(SCOPES[name], [claim_of(row) for row in found])
                for name, found in pooled.items()
                if found
            ],
            [_capital(claim) for claim in claims],
            [Scope(name, [find(rows, name, claim) for claim in claims]) for name in datasets],
            _axis(drawn),
        )


def summary(rows: Sequence[Mapping[str, Any]], kinds: registry.DatasetKinds) -> str:
    """The findings that matter in one to four sentences."""
    given, generated = (
        _row(rows, registry.ALL_GIVEN, registry.HEADLINE),
        _row(rows, registry.ALL_GENERATED, registry.HEADLINE),
    )
    if given is None and generated is None:
        return "Nothing can be established: no data set here supports a claim."
    sentences = []
    for row, where, names in (
        (given, "On texts it was given", [*kinds.text_controlled, *kinds.leaky]),
        (generated, "On the model's own answers", kinds.generated),
    ):
        if row is not None:
            sentences.append(_headline(rows, row, where, names))
    return " ".join([*sentences, *_tracking(rows)])


def _tracking(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {
        name: _tracking_claims(rows, name) for name in SCOPES if _row(rows, name, registry.TRACKING)
    }
    adds = [
        SCOPES[name].lower()
        for name, verdicts in found.items()
        if set(verdicts.values()) == {registry.ESTABLISHED}
    ]
    if not found:
        return []
    if not adds and any(
        verdicts[registry.TRACKING] == registry.ESTABLISHED for verdicts in found.values()
    ):
        return [
            "The metrics of tracks add to it, but that they add more than the same without the links that make a track is not established."
        ]
    if not adds:
        return ["That tracking adds to it is not established."]
    return [
        "Tracking adds to it."
        if len(adds) == len(found)
        else f"Tracking adds to it {adds[0]} only."
    ]


def _tracking_claims(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """Verdicts of a scope's claims that tracks add to the detector: at all, and more than each null."""
    return {
        row["claim"]: row["verdict"]
        for row in rows
        if row["dataset"] == name and row["claim"].startswith(registry.TRACKING)
    }


def _headline(
    rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], where: str, names: Sequence[str]
) -> str:
    if row["verdict"] == registry.ARTEFACT:
        return f"{where}, the detector's score is an artefact: the text alone reaches as much."
    if row["verdict"] != registry.ESTABLISHED:
        return f"{where}, it is not established that the detector beats its best control."
    found = [each for name in names if (each := _row(rows, name, registry.HEADLINE))]
    won = sum(each["verdict"] == registry.ESTABLISHED for each in found)
    alone = f"; taken alone, on {won} of {len(found)} data sets" if len(found) > 1 else ""
    return f"{where}, the detector beats its best control by {row['difference']:.3f} AUROC{alone}."


def findings(
    rows: Sequence[Mapping[str, Any]], kinds: registry.DatasetKinds
) -> dict[str, list[str]]:
    """Claims by verdict: those over several data sets, and the data sets whose headline number is an artefact."""
    found: dict[str, list[str]] = {
        registry.ESTABLISHED: [],
        registry.NOT_ESTABLISHED: [],
        registry.ARTEFACT: [],
    }
    several = sum(any(row["dataset"] == name for row in rows) for name in SCOPES) > 1
    where = (
        {registry.ALL_GIVEN: " (given texts)", registry.ALL_GENERATED: " (own answers)"}
        if several
        else {}
    )
    for row in rows:
        if row["dataset"] in SCOPES:
            found.setdefault(row["verdict"], []).append(
                _capital(row["claim"]) + where.get(row["dataset"], "")
            )
    for row in rows:
        single = row["dataset"] not in SCOPES and row["claim"] == registry.HEADLINE
        if single and row["verdict"] == registry.ARTEFACT:
            kind = ", a positive control" if row["dataset"] in kinds.control else ""
            found[registry.ARTEFACT].append(
                f"The detector's {row['auroc_ours']:.2f} on {row['dataset']}{kind}"
            )
    return found


def claim_of(row: Mapping[str, Any]) -> Claim:
    """A line of the ledger as words and a mark."""
    ours, control = registry.label(row["ours"]), registry.label(row["control"])
    numbers = (
        f"{_capital(ours)} {_number(row['auroc_ours'])} against {_number(row['auroc_control'])} ({control}). "
        f"Difference {_signed(row['difference'])} "
        f"({_signed(row['difference_low'])}\u00a0to\u00a0{_signed(row['difference_high'])}"
        f"{_chance(row['p_holm'])}); {int(row['n']):,} texts in {int(row['groups']):,} groups."
    )
    reason = row.get("reason")
    kind = str(row["verdict"]).replace(" ", "-")
    point = Gain(
        "difference", kind, "o", row["difference"], row["difference_low"], row["difference_high"]
    )
    return Claim(
        _capital(row["claim"]),
        row["verdict"],
        numbers,
        _capital(reason) if isinstance(reason, str) else "",
        point,
    )


def _row(rows: Sequence[Mapping[str, Any]], dataset: str, claim: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["dataset"] == dataset and row["claim"] == claim), None)


def find(rows: Sequence[Mapping[str, Any]], dataset: str, claim: str) -> Claim | None:
    """One claim on one data set, or None if the ledger does not hold it."""
    row = _row(rows, dataset, claim)
    return None if row is None else claim_of(row)


def _axis(rows: Sequence[Mapping[str, Any]]) -> Axis:
    ends = [
        abs(row[key])
        for row in rows
        for key in ("difference_low", "difference_high")
        if not math.isnan(row[key])
    ]
    reach = max([LEAST_REACH, *ends])
    step = 0.1 if reach < 0.35 else 0.25
    count = int(reach / step + 1e-9)
    return Axis(
        -reach, reach, 0.0, [round(step * number, 2) for number in range(-count, count + 1)]
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:+.3f}".replace("-", "\u2212")


def _chance(p: float) -> str:
    """The corrected p-value as part of a sentence; nothing when it is not known."""
    if math.isnan(p):
        return ""
    return "; corrected p\u00a0<\u00a00.001" if p < 0.001 else f"; corrected p\u00a0=\u00a0{p:.3f}"

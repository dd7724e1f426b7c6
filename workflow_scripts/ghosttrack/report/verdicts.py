"""The claim ledger in plain words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.report.lanes import Axis, Point
from ghosttrack.report.numbers import small

Row = Mapping[str, Any]  # one row of the ledger
# The axis of differences reaches at least this far to both sides, so that small noise looks small.
LEAST_REACH = 0.1
SCOPES = {
    registry.ALL_GIVEN: "given texts",
    registry.ALL_GENERATED: "the model's own answers",
    registry.ALL_MISLED: "texts after remarks",
}
# Names of the means over data sets in tables.
POOLS = {
    registry.ALL_GIVEN: "mean, given texts",
    registry.ALL_GENERATED: "mean, generated answers",
    registry.ALL_MISLED: "mean, texts after remarks",
}
# Added to the explanation of the headline claim if there are texts after remarks.
_AFTER_REMARKS = " After remarks, controls also know whether the text agrees with the remark."
SAES = "sparse autoencoders add to the detector"
# Claims at the top of the report, each with one sentence that explains it.
KEY_CLAIMS = {
    registry.HEADLINE: "Best control: on each data set, the strongest score from only the text, "
    "the model's output, or a probe on raw activations.",
    SAES: "The same detector with and without sparse-autoencoder features.",
    registry.TRACKING: "The same detector with and without metrics of feature tracks. "
    "The metrics must also add more than those of null tracks.",
    registry.BEYOND_PASS: "Best control: on each data set, the strongest score from the text, the "
    "model's output, and whether the text agrees with the remark.",
    registry.BEYOND_CLOSED_BOOK: "Output with and without the remark, the text and its agreement "
    "with the remark; the same with activations.",
}
# Titles of at most eight words, by the first words of a claim; other claims are short enough.
TITLES = {
    "the detector beats a regression on all output": "The detector beats the output regression",
    "the detector beats a regression on output features without": "The detector beats the "
    "single-answer output regression",
    "the detector beats a regression on output features and text pairs": "The detector beats output and words "
    "together",
    registry.BEYOND_PASS: "The detector beats everything in the same pass",
    registry.ADDS_TO_PASS: "Activations add to everything in the same pass",
}


class ClaimText(NamedTuple):
    """One row of the ledger in words, with the difference to draw."""

    title: str
    verdict: str
    numbers: str
    reason: str
    point: Point


class ClaimGroup(NamedTuple):
    """The claims on one data set or on pooled data sets; None for a claim not made there."""

    title: str
    claims: list[ClaimText | None]


class KeyResult(NamedTuple):
    """A key claim in one scope: the scope in words, the two AUROCs, and the claim that decides."""

    scope: str
    aurocs: str
    claim: ClaimText


class KeyClaim(NamedTuple):
    """A claim at the top of the report, with its result in every scope."""

    title: str
    about: str
    results: list[KeyResult]


class Conclusions(NamedTuple):
    """What a run shows.

    summary: one sentence.
    key_claims: at most three claims, over pooled data sets.
    findings: short sentences by verdict.
    scopes: every claim over pooled data sets.
    titles, by_dataset: titles of all claims, and the claims in this order for each data set.
    axis: of all differences over pooled data sets.
    """

    summary: str
    key_claims: list[KeyClaim]
    findings: dict[str, list[str]]
    scopes: list[ClaimGroup]
    titles: list[str]
    by_dataset: list[ClaimGroup]
    axis: Axis

    @classmethod
    def of(cls, ledger: pd.DataFrame, kinds: registry.DatasetKinds) -> Self:
        """Put a ledger into words."""
        rows = ledger.to_dict("records")
        claims = list(dict.fromkeys(row["claim"] for row in rows))
        pooled = {name: [row for row in rows if row["dataset"] == name] for name in SCOPES}
        datasets = [name for names in kinds for name in names]
        return cls(
            summary(rows),
            key_claims(rows, kinds),
            findings(rows, kinds),
            [
                ClaimGroup(capital(SCOPES[name]), [claim_of(row) for row in scope_rows])
                for name, scope_rows in pooled.items()
                if scope_rows
            ],
            [title(claim) for claim in claims],
            [ClaimGroup(name, [find(rows, name, claim) for claim in claims]) for name in datasets],
            difference_axis([row for scope_rows in pooled.values() for row in scope_rows]),
        )


def summary(rows: Sequence[Row]) -> str:
    """The headline claim on given texts, own answers and texts after remarks, in one sentence."""
    parts = []
    for name, scope in SCOPES.items():
        claim, control, best = registry.HEADLINE, "its best control", "the best control"
        if name == registry.ALL_MISLED:
            claim, control = registry.BEYOND_PASS, "all output and text of the same pass"
            best = control
        row = row_of(rows, name, claim)
        if row is None:
            continue
        if row["verdict"] == registry.ESTABLISHED:
            gain = f"by {small(row['difference'])} AUROC on {scope}"
            parts.append(f"the detector beats {control} {gain}")
        elif row["verdict"] == registry.ARTEFACT:
            parts.append(f"on {scope} no gain counts, because {row['reason']}")
        elif name == registry.ALL_MISLED:  # a detector with agreement may gain
            parts.append(f"on {scope} a gain of the detector over {best} is not established")
        else:
            parts.append(f"on {scope} no gain over {best} is established")
    return f"{capital('; '.join(parts))}." if parts else "No data set here supports a claim."


def key_claims(rows: Sequence[Row], kinds: registry.DatasetKinds) -> list[KeyClaim]:
    """The claims of KEY_CLAIMS that the ledger makes over pooled data sets."""
    members = {
        registry.ALL_GIVEN: [*kinds.text_controlled, *kinds.leaky],
        registry.ALL_GENERATED: kinds.generated,
        registry.ALL_MISLED: kinds.misled,
    }
    claims = []
    for name, about in KEY_CLAIMS.items():
        results = [
            KeyResult(capital(SCOPES[scope]), _aurocs(rows, row, members[scope]), claim_of(row))
            for scope in SCOPES
            if (row := _decisive(rows, scope, name))
        ]
        if name == registry.HEADLINE and row_of(rows, registry.ALL_MISLED, name):
            about += _AFTER_REMARKS
        if results:
            claims.append(KeyClaim(title(name), about, results))
    return claims


def _aurocs(rows: Sequence[Row], pooled: Row, datasets: Sequence[str]) -> str:
    """Both AUROCs, and on how many of several data sets the claim is established alone."""
    text = f"AUROC {_number(pooled['auroc_ours'])} against {_number(pooled['auroc_control'])}"
    single = [
        row
        for name in datasets
        if (row := row_of(rows, name, pooled["claim"])) and row["mode"] == pooled["mode"]
    ]
    if len(single) < 2:
        return text
    won = sum(row["verdict"] == registry.ESTABLISHED for row in single)
    return f"{text}; established alone on {won} of {len(single)} data sets"


def _decisive(rows: Sequence[Row], scope: str, claim: str) -> Row | None:
    """The claim's row in a scope; if established, the first comparison with a null that is not."""
    row = row_of(rows, scope, claim)
    if row is None or row["verdict"] != registry.ESTABLISHED:
        return row
    with_nulls = (
        other
        for other in rows
        if other["dataset"] == scope and other["claim"].startswith(claim + registry.MORE_THAN)
    )
    return next((other for other in with_nulls if other["verdict"] != registry.ESTABLISHED), row)


def findings(rows: Sequence[Row], kinds: registry.DatasetKinds) -> dict[str, list[str]]:
    """Titles of the claims over pooled data sets by verdict, and data sets with an artefact."""
    by_verdict: dict[str, list[str]] = {
        registry.ESTABLISHED: [],
        registry.NOT_ESTABLISHED: [],
        registry.ARTEFACT: [],
    }
    several = sum(any(row["dataset"] == name for row in rows) for name in SCOPES) > 1
    for row in rows:
        if row["dataset"] in SCOPES:
            where = f" ({SCOPES[row['dataset']]})" if several else ""
            by_verdict.setdefault(row["verdict"], []).append(title(row["claim"]) + where)
    for row in rows:
        single = row["dataset"] not in SCOPES and row["claim"] == registry.HEADLINE
        if single and row["verdict"] == registry.ARTEFACT:
            kind = ", a positive control" if row["dataset"] in kinds.control else ""
            by_verdict[registry.ARTEFACT].append(
                f"The detector's AUROC of {row['auroc_ours']:.2f} on {row['dataset']}{kind}"
            )
    return by_verdict


def title(claim: str) -> str:
    """A claim as a title of at most eight words."""
    short = next((text for start, text in TITLES.items() if claim.startswith(start)), "")
    return short or capital(
        claim.replace(registry.TRACKING + registry.MORE_THAN, "tracking adds more than its")
    )


def claim_of(row: Row) -> ClaimText:
    """A row of the ledger in words."""
    ours, control = registry.label(row["ours"]), registry.label(row["control"])
    numbers = (
        f"{capital(ours)} {_number(row['auroc_ours'])} against {_number(row['auroc_control'])} "
        f"({control}); {_p_value(row['p_holm'])}"
        f"{int(row['n']):,} texts in {int(row['groups']):,} groups."
    )
    reason = row.get("reason")
    kind = str(row["verdict"]).replace(" ", "-")
    point = Point(
        "difference", kind, "o", row["difference"], row["difference_low"], row["difference_high"]
    )
    return ClaimText(
        title(row["claim"]),
        row["verdict"],
        numbers,
        capital(reason) if isinstance(reason, str) else "",
        point,
    )


def row_of(rows: Sequence[Row], dataset: str, claim: str) -> Row | None:
    """The row of a claim on a data set or a pooled scope, or None."""
    return next((row for row in rows if row["dataset"] == dataset and row["claim"] == claim), None)


def headline(rows: Sequence[Row], dataset: str) -> str:
    """The claim to show for a data set or pooled scope: texts after remarks have one of their own."""
    own = row_of(rows, dataset, registry.BEYOND_PASS)
    return registry.HEADLINE if own is None else registry.BEYOND_PASS


def find(rows: Sequence[Row], dataset: str, claim: str) -> ClaimText | None:
    """One claim on one data set, or None if the ledger does not make it."""
    row = row_of(rows, dataset, claim)
    return None if row is None else claim_of(row)


def difference_axis(rows: Sequence[Row]) -> Axis:
    """A symmetric axis that holds the intervals of all differences."""
    limits = [
        abs(row[key])
        for row in rows
        for key in ("difference", "difference_low", "difference_high")
        if not math.isnan(row[key])
    ]
    reach = max([LEAST_REACH, *limits])
    step = 0.1 if reach < 0.35 else 0.25
    count = int(reach / step + 1e-9)
    ticks = [round(step * number, 2) for number in range(-count, count + 1)]
    return Axis(-reach, reach, 0.0, ticks)


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"


def _p_value(p: float) -> str:
    """The corrected p-value as part of a sentence; empty if it is NaN."""
    if math.isnan(p):
        return ""
    if p < 0.001:
        return "corrected p\u00a0<\u00a00.001; "
    return f"corrected p\u00a0=\u00a0{p:.{3 if p >= 0.1 else 4}f}; "  # .0498 is below .05

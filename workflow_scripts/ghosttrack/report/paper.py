"""A run as parts of a paper: LaTeX tables (booktabs), figures in pdf, a citation, and a document that holds them all."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ghosttrack import scores as registry

# Scores of the main table, in order; "ours" is set in bold.
SCORES = (
    registry.DETECTOR,
    "answer_logprob_mean",
    registry.OUTPUT_REGRESSION,
    "raw_probe",
    "sae_probe",
    registry.TEXT_ONLY,
)
QUALITY = (
    ("l0", "$L_0$", 1),
    ("fvu", "FVU", 3),
    ("fvu_token_median", "FVU, median", 3),
    ("pca_fvu", "FVU of PCA", 3),
    ("random_fvu", "FVU, random", 3),
    ("delta_ce", r"$\Delta$CE", 3),
    ("kl_div_with_sae", "KL", 3),
    ("dead_fraction", "dead", 3),
)
POOLS = {registry.ALL_GIVEN: "mean, given texts", registry.ALL_GENERATED: "mean, own answers"}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
# Figures of the document with their captions.
FIGURES = {
    "auroc": "AUROC with its interval, by data set and score.",
    "calibration": "Calibration of the detector by data set.",
    "sae_quality": "Quality of the sparse autoencoders by layer, on held-out documents.",
    "links": "Similarity of each feature's best match in the next layer, against permuted decoders.",
    "explanations": "Change of the log-odds when features are taken out of the running model.",
}
TITLE = "GhostTrack: tracked hypotheses of a language model against what the text alone gives away"


def escape(text: str) -> str:
    """A text as LaTeX shows it."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def number(value: float, digits: int = 3) -> str:
    """A number with fixed digits and a true minus; a dash when there is none."""
    return "--" if math.isnan(value) else f"${value:.{digits}f}$"


def detectors(metrics: pd.DataFrame) -> str:
    """AUROC of the shown scores with their intervals, a row per data set, means last."""
    rows = []
    for dataset in dict.fromkeys(metrics["dataset"]):
        found = [registry.row_of(metrics, str(dataset), score_name) for score_name in SCORES]
        ours = found[0]
        cells = [_estimate(row, bold=not place) for place, row in enumerate(found)]
        size = [f"{int(ours['n'])}", f"{int(ours['groups'])}"] if ours else ["--", "--"]
        rows.append([_name(str(dataset)), *size, *cells])
    return _table(
        "lrr" + "c" * len(SCORES),
        ["data set", "texts", "groups", *(registry.get(name).heading for name in SCORES)],
        rows,
        "AUROC of telling hallucinated from true texts, out of fold, with intervals from a bootstrap over groups.",
        "detectors",
    )


def claims(ledger: pd.DataFrame) -> str:
    """Every claim about several data sets: ours, its best control, the difference, the verdict."""
    chosen = (
        ledger[ledger["dataset"].isin(POOLS)] if ledger["dataset"].isin(POOLS).any() else ledger
    )
    rows = [
        [
            escape(str(row["claim"])),
            _name(str(row["dataset"])),
            escape(registry.label(str(row["control"]))),
            number(row["auroc_ours"]),
            number(row["auroc_control"]),
            f"{number(row['difference'])} [{number(row['difference_low'])}, {number(row['difference_high'])}]",
            number(row["p_holm"], 4),
            escape(str(row["verdict"])),
        ]
        for row in chosen.to_dict("records")
    ]
    columns = ["claim", "on", "control", "ours", "control", "difference", "$p$ (Holm)", "verdict"]
    caption = "Claims, each ours minus its best control on the same texts."
    return _table("p{4.2cm}lp{2.8cm}cccrl", columns, rows, caption, "claims")


def saes(quality: Mapping[int, Mapping[str, Any]]) -> str:
    """Quality of the autoencoders, a row per layer."""
    rows = [
        [
            str(layer),
            *(number(float(found.get(key, math.nan)), digits) for key, _, digits in QUALITY),
        ]
        for layer, found in sorted(quality.items())
    ]
    caption = "Sparse autoencoders on held-out documents."
    return _table(
        "r" * (1 + len(QUALITY)),
        ["layer", *(label for _, label, _ in QUALITY)],
        rows,
        caption,
        "saes",
    )


def document(model: str, version: str, drawn: Sequence[str]) -> str:
    """A document that shows all tables and the figures that were drawn."""
    figures = "\n".join(
        f"\\begin{{figure}}[p]\n\\centering\n\\includegraphics[width=\\linewidth]{{figures/{name}.pdf}}\n"
        f"\\caption{{{caption}}}\n\\label{{fig:{name}}}\n\\end{{figure}}"
        for name, caption in FIGURES.items()
        if name in drawn
    )
    return rf"""% Tables and figures of the run {escape(model)}, written by GhostTrack {version}. Each number is one of evaluation/*.csv or saes/*/quality.json, rounded.
\documentclass{{article}}
\usepackage[utf8]{{inputenc}}
\usepackage[T1]{{fontenc}}
\usepackage[margin=2cm,landscape]{{geometry}}
\usepackage{{booktabs,graphicx}}
\title{{{escape(TITLE)}}}
\author{{Run: {escape(model)}}}
\date{{}}
\begin{{document}}
\maketitle
Tables and figures of one run of GhostTrack~\cite{{ghosttrack}}.
\input{{tables/claims}}
\input{{tables/detectors}}
\input{{tables/saes}}
{figures}
\begin{{thebibliography}}{{1}}
\bibitem{{ghosttrack}} The GhostTrack authors. \emph{{{escape(TITLE)}}}. Software, version {version}.
\end{{thebibliography}}
\end{{document}}
"""


def citation(version: str) -> str:
    """A BibTeX entry."""
    return f"@software{{ghosttrack,\n  author = {{{{The GhostTrack authors}}}},\n  title = {{{{{escape(TITLE)}}}}},\n  version = {{{version}}},\n}}\n"


def _name(dataset: str) -> str:
    return escape(POOLS.get(dataset, dataset))


def _estimate(row: Mapping[str, Any] | None, bold: bool) -> str:
    if row is None or math.isnan(row["auroc"]):
        return "--"
    value = number(row["auroc"])
    spread = (
        ""
        if math.isnan(row["auroc_low"])
        else f" [{number(row['auroc_low'])}, {number(row['auroc_high'])}]"
    )
    return (rf"\textbf{{{value.strip('$')}}}" if bold else value) + (
        rf"{{\scriptsize{spread}}}" if spread else ""
    )


def _table(
    spec: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str
) -> str:
    lines = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}[p]",
            r"\centering\footnotesize",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            " & ".join(columns) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )

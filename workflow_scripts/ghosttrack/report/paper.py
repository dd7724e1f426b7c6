"""LaTeX tables (booktabs) of a run, a citation, and a document that shows tables and figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ghosttrack import scores as registry
from ghosttrack.report.verdicts import title

# Scores of the main table with their headings; the first is set in bold.
SCORES = (
    (registry.DETECTOR, "detector"),
    ("answer_logprob_mean", "log-prob."),
    ("output_regression", "output regr."),
    ("raw_probe", "raw probe"),
    ("sae_probe", "SAE probe"),
    (registry.TEXT_ONLY, "text only"),
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
POOLS = {
    registry.ALL_GIVEN: "mean, given texts",
    registry.ALL_GENERATED: "mean, generated answers",
    registry.ALL_MISLED: "mean, texts after remarks",
}
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
# Captions of the figures of the document.
FIGURES = {
    "summary": "AUROC of five scores with intervals, pooled and by data set.",
    "auroc": "AUROC with its interval, by data set and score.",
    "calibration": "Calibration of the detector by data set.",
    "sae_quality": "Quality of the sparse autoencoders by layer, on held-out documents.",
    "links": "Decoder cosine of features and their best match in the next layer, against permuted "
    "decoders.",
    "explanations": "Mean change of the detector's log-odds when features are ablated.",
}
TITLE = "GhostTrack: tracked hypotheses of a language model against what the text alone gives away"


def escape(text: str) -> str:
    """A text with the special characters of LaTeX escaped."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def number(value: float, digits: int = 3) -> str:
    """A number in math mode with a fixed number of digits; a dash for NaN."""
    return "--" if math.isnan(value) else f"${value:.{digits}f}$"


def detectors(metrics: pd.DataFrame) -> str:
    """The table of AUROCs with intervals: SCORES by data set, means last."""
    rows = []
    for dataset in dict.fromkeys(metrics["dataset"]):
        results = [registry.row_of(metrics, str(dataset), score) for score, _ in SCORES]
        detector = results[0]
        cells = [_estimate(row, bold=not number) for number, row in enumerate(results)]
        size = [f"{int(detector['n'])}", f"{int(detector['groups'])}"] if detector else ["--", "--"]
        rows.append([_name(str(dataset)), *size, *cells])
    return _table(
        "lrr" + "c" * len(SCORES),
        ["data set", "texts", "groups", *(label for _, label in SCORES)],
        rows,
        "Out-of-fold AUROC of separating hallucinated from true texts, with bootstrap intervals "
        "over groups.",
        "detectors",
    )


def claims(ledger: pd.DataFrame) -> str:
    """The table of claims over pooled data sets; of all claims if there are no pooled ones."""
    chosen = (
        ledger[ledger["dataset"].isin(POOLS)] if ledger["dataset"].isin(POOLS).any() else ledger
    )
    rows = [
        [
            escape(title(str(row["claim"]))),
            _name(str(row["dataset"])),
            escape(registry.label(str(row["control"]))),
            number(row["auroc_ours"]),
            number(row["auroc_control"]),
            f"{number(row['difference'])} [{number(row['difference_low'])}, "
            f"{number(row['difference_high'])}]",
            number(row["p_holm"], 4),
            escape(str(row["verdict"])),
        ]
        for row in chosen.to_dict("records")
    ]
    columns = ["claim", "on", "control", "AUROC", "control", "difference", "$p$ (Holm)", "verdict"]
    caption = "Claims: difference of AUROC to the best control on the same texts."
    return _table("p{4.2cm}lp{2.8cm}cccrl", columns, rows, caption, "claims")


def saes(quality: Mapping[int, Mapping[str, Any]]) -> str:
    """The table of SAE quality on held-out documents, a row per layer."""
    rows = [
        [
            str(layer),
            *(
                number(float(layer_quality.get(key, math.nan)), digits)
                for key, _, digits in QUALITY
            ),
        ]
        for layer, layer_quality in sorted(quality.items())
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
    """A document with all tables and the figures of FIGURES that are in `drawn`."""
    figures = "\n".join(
        f"\\begin{{figure}}[p]\n\\centering\n\\includegraphics[width=\\linewidth]{{figures/{name}.pdf}}\n"
        f"\\caption{{{caption}}}\n\\label{{fig:{name}}}\n\\end{{figure}}"
        for name, caption in FIGURES.items()
        if name in drawn
    )
    return rf"""% Tables and figures of the run {escape(model)}, written by GhostTrack {version}. All numbers are rounded values of evaluation/*.csv or saes/*/quality.json.
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
    return (
        f"@software{{ghosttrack,\n  author = {{{{The GhostTrack authors}}}},\n  title = "
        f"{{{{{escape(TITLE)}}}}},\n  version = {{{version}}},\n}}\n"
    )


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

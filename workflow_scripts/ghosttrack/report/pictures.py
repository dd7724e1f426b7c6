"""Figures embedded in a page: an svg in the colours of the page if there is one, else the png."""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

# CSS colours of the page by colour of the figures, so that a dark page has light lines.
COLOURS = {
    "#1f2328": "var(--ink)",
    "#59636e": "var(--muted)",
    "#d1d9e0": "var(--rule)",
    "#ffffff": "var(--paper)",
    "#1f5fbf": "var(--detector)",
    "#c2571a": "var(--output)",
    "#1a7f5a": "var(--probe)",
    "#6e7781": "var(--control)",
    "#8a3ab9": "var(--regression)",
}
# Text for screen readers and caption of each figure.
CAPTIONS = {
    "summary": (
        "AUROC of five scores, pooled and by data set",
        "How well these scores separate hallucinated from true texts. Text alone: word and "
        "character counts, without the model. Best single output score: the highest AUROC of "
        "log-probability, PMI, entropy and similar scores on these texts. Output regression: "
        "all output features of the answer. Detector: output features, activations and SAE "
        "residuals.",
    ),
    "roc": (
        "ROC curves by data set",
        "ROC curves. The dashed diagonal is chance. If the dotted text-only curve lies above "
        "it, the text leaks the label.",
    ),
    "pr": (
        "Precision-recall curves by data set",
        "Precision against recall. The dashed line is the prevalence: the precision of calling "
        "every text hallucinated.",
    ),
    "calibration": (
        "Calibration of the detector by data set",
        "Calibration of the detector. On the dashed line, 70\u00a0% of the texts with a "
        "predicted probability of 70\u00a0% are hallucinated. Larger dots are bins with more "
        "texts.",
    ),
    "sae_quality": (
        "Quality of the sparse autoencoders by layer",
        "Left: fraction of variance unexplained on held-out text and on answer tokens (dotted: "
        "median token); lower is better. It should be well below that of a random dictionary. "
        "PCA has as many components as the SAE has active features. Middle: change of the "
        "model's predictions when the SAE's reconstruction is spliced in; lower is better, "
        "whiskers are one standard error. Right: active features per token; dashed lines are "
        "the limits of the gate, 50 and 100.",
    ),
    "links": (
        "Similarity of features in neighbouring layers",
        "Left: decoder cosine of each feature and its best match in the next layer: median "
        "(dot), 5 % to 95 % of the features (line). Links must exceed the gate. Right: links of "
        "which both features fire on the same held-out token, for real and permuted decoders; "
        "squares are the links that the tracker chose on answer tokens, one to one among its "
        "strongest features. Where real decoders do not exceed permuted ones, there is nothing "
        "to track.",
    ),
    "tracks": (
        "Links per token and length of tracks",
        "Left: links per token. Middle: mean track length in layers. Dots are data sets, bars "
        "their mean. Right: fraction of tracks with at least this many layers. Compare the "
        "tracker with its nulls.",
    ),
    "risk": (
        "Risk against coverage by data set",
        "Risk-coverage curves: the fraction of wrong decisions among the texts with the most "
        "confident scores. A flat line at one half is chance.",
    ),
    "verdicts": (
        "Risk against coverage of verdicts on whole statements",
        "Error among the most certain statements of kinds that were left out of the fit. The dashed "
        "lines are the errors that the confidences .75 and .9 allow.",
    ),
    "explanations": (
        "Change of the score when features are ablated",
        "Mean change of the detector's log-odds when features are ablated at the answer's "
        "tokens; lines are intervals. The named reasons should exceed random features that are "
        "active on the same answers. The most active features are selected without the detector.",
    ),
    "auroc": ("AUROC by data set", "AUROC with its interval, by data set and score."),
}


class Picture(NamedTuple):
    """A figure ready for a page: markup, text for screen readers, caption."""

    markup: Markup
    alt: str
    caption: str


def embed(paths: Sequence[Path]) -> dict[str, Picture | None]:
    """Pictures by name, for every name of CAPTIONS; None for a figure that was not drawn."""
    pictures: dict[str, Picture | None] = dict.fromkeys(CAPTIONS)
    for path in sorted(paths, key=lambda path: path.suffix == ".svg"):  # an svg replaces a png
        if path.stem not in CAPTIONS or path.suffix not in (".png", ".svg"):
            continue
        alt, caption = CAPTIONS[path.stem]
        pictures[path.stem] = Picture(
            _svg(path, alt) if path.suffix == ".svg" else _png(path, alt), alt, caption
        )
    return pictures


def embed_one(paths: Sequence[Path], alt: str, caption: str) -> Picture | None:
    """The svg among `paths` with the given text and caption; None without an svg."""
    svg = next((path for path in paths if path.suffix == ".svg"), None)
    return Picture(_svg(svg, alt), alt, caption) if svg else None


def _png(path: Path, alt: str) -> Markup:
    data = base64.b64encode(path.read_bytes()).decode()
    return Markup(f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">')


def _svg(path: Path, alt: str) -> Markup:
    """The svg element with unique ids and with the colours and the font of the page."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->",
        "",
        text[text.index("<svg") :],
        flags=re.DOTALL,
    )
    box = re.search(r'viewBox="([^"]+)"', text)
    text = text[text.index(">") + 1 :]
    text = re.sub(r'\bid="', f'id="{path.stem}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{path.stem}-", text).replace("xlink:href", "href")
    text = re.sub(r"#[0-9a-f]{6}\b", lambda match: COLOURS.get(match[0], match[0]), text)
    text = text.replace("'DejaVu Sans'", "var(--sans)")
    view = box[1] if box else "0 0 460 300"
    return Markup(
        f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="{view}">{text}'
    )

"""Drawn figures as parts of a page: svg in the page's own colours where there is one, else the png itself."""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

# Colours of the drawn figures, and the page's own for the same purpose: a dark page gets light lines.
COLOURS = {
    "#1f2328": "var(--ink)",
    "#59636e": "var(--muted)",
    "#d1d9e0": "var(--rule)",
    "#ffffff": "var(--paper)",
    "#1f5fbf": "var(--detector)",
    "#c2571a": "var(--output)",
    "#1a7f5a": "var(--probe)",
    "#6e7781": "var(--control)",
}
CAPTIONS = {
    "roc": (
        "ROC curves by data set",
        "ROC. The further a curve bends to the upper left, the better; the dashed diagonal is a coin toss. Where the dotted text-only curve bends with the others, the text itself leaks.",
    ),
    "pr": (
        "Precision-recall curves by data set",
        "Precision against recall. The dashed line is the prevalence: what calling every text hallucinated would reach.",
    ),
    "calibration": (
        "Calibration of the detector by data set",
        "Calibration of the detector. On the dashed line, of the texts called 70 % likely hallucinated, 70 % are. Larger dots hold more texts.",
    ),
    "sae_quality": (
        "Quality of the sparse autoencoders by layer",
        "Left: variance that the SAE leaves unexplained, on held-out text and on the tokens of the judged answers; lower is better; dotted: the median token. It should stay well below the random dictionary; PCA with as many components as the SAE has active features shows what a plain linear code reaches. Middle: what putting the SAE's output in the layer's place does to the model's predictions; lower is better, the whiskers are one standard error. Right: active features per token; the gate asks for 50 to 100 (dashed).",
    ),
    "links": (
        "Similarity of features in neighbouring layers",
        "Left: how similar each feature's best match in the next layer is: dot = median, line = 5 % to 95 % of the features. Links pass above the gate. Right: links whose two ends fire on the same token, on held-out text, for real and for permuted decoders; the squares are those that the tracker chose on the answers' tokens, among its strongest features and one to one. Where the real decoders lie no higher than the permuted ones, there is nothing to track.",
    ),
    "tracks": (
        "Links per token and length of tracks",
        "Left: links per token. Middle: how many layers a track lasts. A dot is a data set, the bar their mean. Right: share of the tracks that last at least so many layers. What counts is the distance between the tracker and its nulls.",
    ),
    "risk": (
        "Risk against coverage by data set",
        "Risk: of the texts that each score is surest of, the share that it decides wrongly. Read from the left: how many texts can be decided before errors pile up. A flat line at one half is guessing.",
    ),
    "explanations": (
        "Change of the score when features are removed",
        "How far the detector's log-odds move, on average, when features are taken out of the running model at the answer's tokens; lines are intervals. The named reasons must lie to the right of random features that are active on the same answers; beside them stand the most active features, chosen without the detector.",
    ),
    "auroc": ("AUROC by data set", "AUROC with its interval, by data set and score."),
}


class Picture(NamedTuple):
    """A figure ready for a page: its markup, what a screen reader says, how to read it."""

    markup: Markup
    alt: str
    caption: str


def embed(paths: Sequence[Path]) -> dict[str, Picture | None]:
    """Pictures by name, for every name there is a caption for; None for those that were not drawn."""
    found: dict[str, Picture | None] = dict.fromkeys(CAPTIONS)
    for path in sorted(paths, key=lambda path: path.suffix == ".svg"):  # svg last: it wins
        if path.stem not in CAPTIONS or path.suffix not in (".png", ".svg"):
            continue
        alt, caption = CAPTIONS[path.stem]
        found[path.stem] = Picture(
            _svg(path, alt) if path.suffix == ".svg" else _png(path, alt), alt, caption
        )
    return found


def embed_one(paths: Sequence[Path], alt: str, caption: str) -> Picture | None:
    """The svg among `paths` as a picture with words of its own; None without one."""
    found = next((path for path in paths if path.suffix == ".svg"), None)
    return Picture(_svg(found, alt), alt, caption) if found else None


def _png(path: Path, alt: str) -> Markup:
    data = base64.b64encode(path.read_bytes()).decode()
    return Markup(f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">')


def _svg(path: Path, alt: str) -> Markup:
    """The drawing without its XML frame, with ids of its own and the page's colours and letters."""
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

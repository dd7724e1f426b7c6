"""Take the pictures of the docs from a finished run, in headless Chromium without a network.

PYTHONPATH=workflow_scripts:tests/unit python docs/pictures.py results/smollm2-135m cities-00058-fab capitals-00030-faa
"""

import argparse
import json
import tempfile
from pathlib import Path
from threading import Thread

from browser import Browser, browser
from PIL import Image

from ghosttrack.api import Detector
from ghosttrack.cli import score
from ghosttrack.cli.serve import Server

HERE = Path(__file__).parent
# Statements of a kind that the detector knows, and one that no statement is.
OWN = (
    "text,answer\nThe capital of France is Paris.,Paris\nThe capital of France is Berlin.,Berlin\nMadrid is a city in Spain.,Spain\n"
    "Madrid is a city in Norway.,Norway\nThe Nile flows through Egypt.,Egypt\nThe Nile flows through Finland.,Finland\n"
)
TYPED = "The capital of France is [Berlin].\nMadrid is a city in Spain."
CLICK = "document.querySelector(%r).dispatchEvent(new MouseEvent('click', {bubbles: true}))"


def take(chromium: Browser, name: str) -> None:
    """The visible part of the page, in 256 colours: a third of the bytes."""
    chromium.screenshot(HERE / name)
    with Image.open(HERE / name) as picture:
        picture.convert("RGB").quantize(256).save(HERE / name, optimize=True)


def report(chromium: Browser, run: Path) -> None:
    """The top of the report on a laptop and on a phone."""
    for width, height, name in ((1280, 900, "report.png"), (390, 844, "report_phone.png")):
        chromium.open((run / "report.html").resolve(), width, height)
        chromium.wait("document.querySelector('footer')")
        take(chromium, name)


def explore(chromium: Browser, page: Path, text: str) -> None:
    """A text with its tracks, a track chosen; then beside its counterpart, in the dark."""
    chromium.open(page, 1500, 940, text)
    chromium.wait(
        f"document.body && document.body.dataset.ready && document.body.dataset.shown.startsWith({text!r})"
    )
    chromium.wait("document.querySelector('.track')")
    chromium.run(CLICK % "[data-track='1']")
    chromium.wait("document.querySelector('#feature h2')")
    take(chromium, "explorer.png")
    chromium.run(CLICK % "#counterpart")
    chromium.wait("document.querySelectorAll('.panel').length === 2")
    chromium.run(CLICK % "#theme")
    take(chromium, "explorer_counterpart.png")


def by_token(chromium: Browser, page: Path, text: str) -> None:
    """An answer of several tokens, drawn along the answer."""
    chromium.open(page, 1500, 800, text)
    chromium.wait(
        f"document.body && document.body.dataset.ready && document.body.dataset.shown.startsWith({text!r})"
    )
    chromium.run(
        "(() => { const field = document.getElementById('axis'); field.value = 'tokens'; field.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    chromium.wait("document.querySelector('[data-answer]')")
    take(chromium, "explorer_answer.png")


def candidates(chromium: Browser, page: Path, text: str) -> None:
    """A text whose output a false remark misled, with the ribbons of its two candidate answers."""
    chromium.open(page, 1500, 1000, text)
    chromium.wait(
        f"document.body && document.body.dataset.ready && document.body.dataset.shown.startsWith({text!r})"
    )
    chromium.wait("document.querySelector('.race .track')")
    take(chromium, "explorer_candidates.png")


def score_own(chromium: Browser, run: Path) -> None:
    """The page of a few user texts."""
    with tempfile.TemporaryDirectory() as folder:
        mine, page = Path(folder) / "mine.csv", Path(folder) / "mine.html"
        mine.write_text(OWN)
        if score.main([str(run), "--texts", str(mine), "--out", str(page)]):
            raise SystemExit(1)
        chromium.open(page, 1100, 800)
        chromium.wait("document.querySelector('footer')")
        take(chromium, "scored.png")


def serve(run: Path) -> None:
    """The page of `make serve` after two statements, with the reasons of the first."""
    detector = Detector.load(run)
    with Server(detector, run.name, 0) as server, browser(offline=False) as chromium:
        Thread(target=server.serve_forever, daemon=True).start()
        chromium.open(server.url, 900, 1100)
        chromium.wait("document.querySelector('form')")
        chromium.run(
            f"document.getElementById('texts').value = {json.dumps(TYPED)}; document.querySelector('form button').click()"
        )
        chromium.wait("document.querySelectorAll('.cards h2').length === 2", 120)
        chromium.run(
            "document.querySelector('.reasons').open = true; document.activeElement.blur()"
        )
        take(chromium, "served.png")
        server.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("text", help="id of the text to show, as in the explorer's address")
    parser.add_argument("answer", help="id of a text whose answer has several tokens")
    parser.add_argument(
        "misled", nargs="?", help="id of a text with compared candidate answers (preset misled)"
    )
    chosen = parser.parse_args()
    with browser() as started:
        report(started, chosen.run)
        explore(started, (chosen.run / "explorer.html").resolve(), chosen.text)
        by_token(started, (chosen.run / "explorer.html").resolve(), chosen.answer)
        if chosen.misled:
            candidates(started, (chosen.run / "explorer.html").resolve(), chosen.misled)
        score_own(started, chosen.run)
    serve(chosen.run)

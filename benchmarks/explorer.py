"""Size of an explorer page, time to first view and to switch texts, in headless Chromium.

    PYTHONPATH=workflow_scripts:tests/unit python benchmarks/explorer.py \\
        results/smollm2-135m/explorer.html
    PYTHONPATH=workflow_scripts:tests/unit:. python benchmarks/explorer.py --made 900 400

Without a page, one is written from made-up answers: so many of so many words, a token each, with
random tracks.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from browser import browser
from measure import ROOT, show

# The rows are far apart in the list, so every switch unpacks another part of the page. The time
# ends with the frame that shows the text.
SWITCH = """new Promise((done) => {
    const list = document.getElementById('list'), before = document.body.dataset.shown;
    list.scrollTop = (list.scrollHeight - list.clientHeight) * %f;
    requestAnimationFrame(() => {
        const start = performance.now();
        [...document.querySelectorAll('[role=option]')].find((row) => row.getAttribute('aria-selected') === 'false').click();
        const look = () => document.body.dataset.shown === before ? setTimeout(look, 0) : requestAnimationFrame(() => done(performance.now() - start));
        look();
    });
})"""


def made(folder: Path, answers: int, words: int) -> Path:
    """A page of made-up answers, each of `words` tokens and a few more."""
    sys.path += [str(ROOT / "tests" / "unit" / "report")]
    import explorer_fakes

    page = folder / "explorer.html"
    run = explorer_fakes.make_long(folder / "run", answers, words)
    explorer_fakes.write(run, page, datasets=["questions"])
    return page


def main(page: Path, switches: int, title: str, table: str) -> None:
    """Open the page and switch between texts."""
    with browser() as chromium:
        chromium.open(page.resolve())
        chromium.wait("document.body && document.body.dataset.ready")
        first = float(chromium.run("document.body.dataset.ready"))
        chromium.run(
            "(() => { const show = document.getElementById('show'); show.value = 'all'; show.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        opened = chromium.busy()
        times = [float(chromium.run(SWITCH % (number / switches))) for number in range(switches)]
        busy = (chromium.busy() - opened) / switches
        assert chromium.requests == [], chromium.requests
    rows = [
        ["size, MB", page.stat().st_size / 1e6, "30"],
        ["first view, ms", first, "2000"],
        ["first view, CPU ms", 1000 * opened, ""],
        ["switch, CPU ms (mean)", 1000 * busy, ""],
        [f"switch, ms (median of {switches})", statistics.median(times), "200"],
        ["switch, ms (slowest)", max(times), ""],
    ]
    show(title, ["", "measured", "limit"], rows, table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?", help="explorer.html of a run")
    parser.add_argument(
        "--made",
        type=int,
        nargs=2,
        default=(900, 400),
        metavar=("ANSWERS", "WORDS"),
        help="size of the page that is made without a page",
    )
    parser.add_argument("--switches", type=int, default=20)
    chosen = parser.parse_args()
    if chosen.page:
        main(chosen.page, chosen.switches, chosen.page.name, "")
    else:
        answers, words = chosen.made
        with tempfile.TemporaryDirectory() as home:
            main(
                made(Path(home), answers, words),
                chosen.switches,
                f"{answers} made-up answers of {words} words",
                "long",
            )

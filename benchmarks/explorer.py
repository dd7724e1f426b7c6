"""Size of an explorer page, time to first view and to switch texts, in headless Chromium.

    PYTHONPATH=workflow_scripts:tests/unit python benchmarks/explorer.py \\
        results/smollm2-135m/explorer.html
"""

import argparse
import statistics
from pathlib import Path

from browser import browser
from measure import show

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


def main(page: Path, switches: int) -> None:
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
    show(str(page.name), ["", "measured", "limit"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="explorer.html of a run")
    parser.add_argument("--switches", type=int, default=20)
    chosen = parser.parse_args()
    main(chosen.page, chosen.switches)

import os
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import fake_results
import pytest
from browser import CHROMIUM, OPTIONS

from ghosttrack.report.figures import FIGURES
from report import draw_figures, write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run = fake_results.make(folder)
    figures = [folder / "figures" / f"{name}.{kind}" for name, kind in product(FIGURES, ["svg"])]
    draw_figures.main(
        metrics=run.metrics,
        curves=run.curves,
        calibration=run.calibration,
        quality=run.quality,
        answers=run.answers,
        neighbours=run.neighbours,
        links=run.links,
        track_metrics=run.track_metrics,
        explanations=run.explanations,
        verdicts=run.verdicts,
        figures=figures,
        layers=fake_results.LAYERS,
        datasets=list(fake_results.SETS),
        variants=fake_results.VARIANTS,
    )
    write_report.main(
        metrics=run.metrics,
        ledger=run.ledger,
        leak_audit=run.leak_audit,
        quality=run.quality,
        answers=run.answers,
        labels=run.labels,
        relations=run.relations,
        figures=figures,
        explanations=run.explanations,
        kinds=run.kinds,
        checks=run.checks,
        source=run.source,
        report=folder / "report.html",
        settings={"seed": 0},
        model="smollm2-135m",
        layers=fake_results.LAYERS,
        datasets=list(fake_results.SETS),
        controls=fake_results.CONTROLS,
        neighbours=run.neighbours,
    )
    return folder / "report.html"


@pytest.fixture
def profile() -> Iterator[Path]:
    # Not below pytest's own folder: the browser's socket paths must stay short.
    with tempfile.TemporaryDirectory(prefix="gt", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *OPTIONS,
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
        *options,
        page.as_uri(),
    ]
    home = {**os.environ, "HOME": str(profile)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env=home
    )


def console(found: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in found.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_opens_without_console_messages_or_requests(page: Path, profile: Path) -> None:
    found = browse(page, profile, "--dump-dom")
    assert "All claims" in found.stdout
    assert found.stdout.rstrip().endswith("</html>")
    assert console(found) == []


def test_a_page_that_asked_for_something_would_be_noticed(
    page: Path, profile: Path, tmp_path: Path
) -> None:
    # The page's own policy forbids every request and reports each try to the console.
    asking = page.read_text().replace(
        "</body>", '<img src="http://127.0.0.1:9/x.png"><script>alert(1)</script></body>'
    )
    (tmp_path / "asking.html").write_text(asking)
    messages = console(browse(tmp_path / "asking.html", profile, "--dump-dom"))
    assert any("x.png" in message for message in messages)
    assert any("script" in message for message in messages)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_painted_in_light_and_dark(page: Path, profile: Path, scheme: str) -> None:
    from PIL import Image

    shot = profile / "shot.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    browse(
        page, profile, f"--screenshot={shot}", "--window-size=1000,800", "--hide-scrollbars", *dark
    )
    with Image.open(shot) as image:
        corner = image.convert("L").getpixel((2, 2))
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert isinstance(corner, int)
    assert (corner > 200) == (scheme == "light")
    assert colours is not None
    assert len(colours) > 20  # something is drawn

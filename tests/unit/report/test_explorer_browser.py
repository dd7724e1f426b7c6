"""The explorer in a real browser without a network: clicks, keys, and forbidden requests."""

from collections.abc import Iterator
from pathlib import Path

import explorer_fakes
import pandas as pd
import pytest
from browser import CHROMIUM, Browser, browser
from PIL import Image

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

SHOWN = "document.body.dataset.shown"
OPEN_ALL = "(() => { const show = document.getElementById('show'); show.value = 'all'; show.dispatchEvent(new Event('input', {bubbles: true})); })()"


def click(selector: str) -> str:
    """Script that clicks the first match of a selector; SVG elements have no method click()."""
    return f"document.querySelector({selector!r}).dispatchEvent(new MouseEvent('click', {{bubbles: true}}))"


def choose(name: str, value: str) -> str:
    """Script that sets a field and sends the events that a person causes."""
    return (
        f"(() => {{ const field = document.getElementById({name!r}); field.value = {value!r};"
        "field.dispatchEvent(new Event('input', {bubbles: true})); field.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    explorer_fakes.write(explorer_fakes.make(folder), folder / "explorer.html")
    return folder / "explorer.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def page(chromium: Browser, file: Path) -> Browser:
    chromium.requests.clear()
    chromium.messages.clear()
    chromium.open(file)
    chromium.wait("document.body && document.body.dataset.ready")
    return chromium


def quiet(page: Browser) -> bool:
    page.run("1")  # whatever the page has said so far is read with this answer
    return page.messages == [] and page.requests == []


def test_a_person_clicks_from_list_to_text_to_track_to_counterpart_to_filter_to_dark(
    page: Browser, tmp_path: Path
) -> None:
    page.run(OPEN_ALL)
    page.wait("document.querySelectorAll('[role=option]').length > 3")
    page.run(click("#row-1"))
    page.wait(f"{SHOWN}.startsWith('cities-markup-1')")
    assert "This text is hallucinated" in page.run(
        "document.querySelector('#reading h2').textContent"
    )

    tracks = page.run("document.querySelectorAll('.track').length")
    assert tracks >= 3
    page.run(click("[data-place='2']"))
    page.wait(f"{SHOWN}.startsWith('cities-markup-1 2')")
    assert page.run("document.querySelector('.token[aria-pressed=true]').dataset.place") == "2"

    page.run(click("[data-track='1']"))
    page.wait("document.querySelector('#feature h2')")
    said = page.run("document.getElementById('feature').textContent")
    for words in ("Fires on", "Promotes", "Top contexts", "feature", "layer"):
        assert words in said
    assert page.run("document.querySelectorAll('.track.chosen').length") == 1
    # A block opens the feature of its own layer.
    blocks = "document.querySelectorAll(\"[data-track='1'] .node\")"
    for place in range(page.run(f"{blocks}.length")):
        page.run(f"{blocks}[{place}].dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
        page.wait(f"document.querySelectorAll('.steps button')[{place}].ariaPressed === 'true'")

    page.run(click("#counterpart"))
    page.wait(f"{SHOWN}.endsWith('counterpart')")
    assert page.run("document.querySelectorAll('.panel').length") == 2
    assert page.run("document.querySelectorAll('.drawing svg').length") == 2
    assert "Paris" in page.run("document.querySelectorAll('.passage')[1].textContent")

    page.run(choose("decision", "wrong"))
    wrong = page.run("document.querySelectorAll('[role=option]').length")
    assert 0 < wrong < page.run("document.querySelectorAll('[role=option]').length + 1000")
    assert page.run(
        "[...document.querySelectorAll('[role=option]')].every((row) => row.textContent.includes('wrong'))"
    )
    page.run(choose("find", "no text has these words"))
    assert page.run("document.getElementById('count').textContent") == "0 texts, 0 wrong decisions"
    page.run(choose("find", ""))

    before = tmp_path / "before.png"
    after = tmp_path / "after.png"
    page.screenshot(before)
    page.run(click("#theme"))
    page.screenshot(after)
    light, dark = (Image.open(path).convert("L").getpixel((3, 3)) for path in (before, after))
    assert isinstance(light, int)
    assert isinstance(dark, int)
    assert light > 200 > 60 > dark
    assert quiet(page)


def test_words_are_found_in_any_text_whatever_was_shown_before(page: Browser) -> None:
    assert page.run("document.getElementById('show').value") == "picks"
    page.run(choose("find", "Ada 7"))
    assert page.run("document.getElementById('show').value") == "all"
    assert page.run("document.querySelectorAll('[role=option]').length") > 0


def test_the_score_from_the_output_alone_stands_beside_the_score(
    chromium: Browser, file: Path
) -> None:
    figures = "document.querySelector('.figures').textContent"
    for number, said in (("cities-markup-1", "0.25"), ("questions-3", "\u2013")):
        chromium.open(file, part=number)
        chromium.wait(
            f"document.body && document.body.dataset.ready && {SHOWN}.startsWith('{number}')"
        )
        assert chromium.run(figures).endswith(f"output score {said}")


def test_an_answer_is_drawn_token_by_token_with_births_and_deaths(page: Browser) -> None:
    page.run(OPEN_ALL)
    page.run(click("#row-1"))
    page.wait(f"{SHOWN}.startsWith('cities-markup-1')")
    page.run(choose("axis", "tokens"))
    page.wait("document.querySelector('[data-answer]')")
    tokens = page.run("document.querySelectorAll('.token').length")
    columns = page.run(
        "new Set([...document.querySelectorAll('[data-answer]')].map((each) => each.dataset.answer.split(' ')[0])).size"
    )
    assert 1 < columns == min(tokens, 24)
    # A track says in words what its mark shows; the first token has no births, the last no deaths.
    said = page.run(
        "[...document.querySelectorAll('[data-answer]')].map((each) => [each.dataset.answer, each.getAttribute('aria-label'), !!each.querySelector('.birth'), !!each.querySelector('.death')])"
    )
    for place, label, born, died in said:
        assert born == ("begins here" in label)
        assert died == ("ends here" in label)
        assert not (born and place.startswith("0 "))
        assert not (died and place.startswith(f"{columns - 1} "))
    page.run(click("[data-answer='1 0']"))
    page.wait(f"{SHOWN}.startsWith('cities-markup-1 1')")
    page.wait("document.querySelector('#feature h2')")
    assert page.run("document.querySelector('.track[aria-pressed=true]').dataset.answer") == "1 0"
    assert quiet(page)


def test_a_track_goes_on_as_the_one_that_shares_most_of_its_detections(page: Browser) -> None:
    # Features by layer: the first track of token 0 shares one detection with track 0 and two with track 1 of token 1.
    tokens = [
        [[0, [5, 6, 7], [9, 9, 9]], [0, [1, -1, 2], [5, 0, 5]], [1, [8], [3]]],
        [[0, [5], [9]], [1, [6, 7], [4, 4]], [0, [9], [2]]],
    ]
    found = page.run(f"answerAxis.follow({tokens})")
    assert [each["next"] for each in found[0]] == [1, -1, -1]
    assert [each["begins"] for each in found[1]] == [False, False, True]
    assert found[1][1]["chain"] == found[0][0]["chain"]
    assert len({each["chain"] for each in found[0] + [found[1][0], found[1][2]]}) == 5


def test_hostile_texts_are_shown_as_text_and_run_nothing(page: Browser) -> None:
    page.run(OPEN_ALL)
    for name, answer in explorer_fakes.HOSTILE.items():
        page.run(
            choose("find", "the city " + str(list(explorer_fakes.HOSTILE).index(name)) + " is")
        )
        page.wait("document.querySelector('#row-1')")
        page.run(click("#row-1"))
        page.wait(f"{SHOWN}.startsWith('cities-{name}-1')")
        assert answer.strip() in page.run("document.querySelector('.passage').textContent")
        assert page.run("document.querySelector('.drawing svg') !== null")
    # No element of a text's making: no image at all, and only the page's own scripts.
    assert page.run("document.images.length") == 0
    assert page.run(
        "[...document.scripts].every((script) => script.type === 'application/octet-stream' || script.textContent.includes('use strict'))"
    )
    page.run(choose("find", "the city 1 is"))
    page.run(click("#row-1"))
    page.wait(f"{SHOWN}.startsWith('cities-arabic-1')")
    assert page.run("getComputedStyle(document.querySelector('.passage')).unicodeBidi") == "isolate"
    assert quiet(page)


def test_a_page_that_asked_for_something_would_be_noticed(
    chromium: Browser, file: Path, tmp_path: Path
) -> None:
    asking = file.read_text(encoding="utf-8").replace(
        "<footer>", '<img src="http://127.0.0.1:9/x.png"><script>alert(1)</script><footer>'
    )
    (tmp_path / "asking.html").write_text(asking, encoding="utf-8")
    chromium.messages.clear()
    chromium.open(tmp_path / "asking.html")
    chromium.wait("document.body && document.body.dataset.ready")
    assert any("x.png" in message for message in chromium.messages)
    assert any("script" in message for message in chromium.messages)


def test_the_keyboard_alone_leads_through_the_page(page: Browser) -> None:
    page.run(OPEN_ALL)
    page.run("document.getElementById('list').focus()")
    page.press("Home")
    page.wait(f"{SHOWN}.startsWith('cities-markup-0')")
    page.press("ArrowDown")
    page.wait(f"{SHOWN}.startsWith('cities-markup-1')")
    active = page.run("document.getElementById('list').getAttribute('aria-activedescendant')")
    assert page.run(f"document.getElementById('{active}').getAttribute('aria-selected')") == "true"
    page.press("Enter", "\r")
    page.press("ArrowRight")
    page.press("Enter", "\r")
    page.wait(f"{SHOWN}.startsWith('cities-markup-1 1')")
    assert (
        page.run("document.activeElement.dataset.place") == "1"
    )  # the focus stays where the hand is
    page.run("document.querySelector('.track[tabindex=\"0\"]').focus()")
    page.press("ArrowDown")
    page.press("Enter", "\r")
    page.wait("document.querySelector('.track.chosen')")
    assert page.run("document.querySelector('.track.chosen').dataset.track") == "1"
    assert page.run("document.activeElement.dataset.track") == "1"
    assert quiet(page)


def test_what_is_not_text_has_a_name_for_those_who_do_not_see_it(page: Browser) -> None:
    unnamed = """[...document.querySelectorAll('[role=button], [role=option], [role=listbox], [role=group], button, select, input')]
        .filter((node) => !(node.getAttribute('aria-label') || node.labels?.length || node.textContent.trim())).length"""
    assert page.run(unnamed) == 0
    assert page.run("document.querySelectorAll('.track[tabindex=\"0\"]').length") == 1
    page.run("document.querySelector('.panel details summary').click()")
    page.wait("document.querySelector('.panel table')")
    assert page.run("document.querySelectorAll('.panel tbody tr').length") == page.run(
        "document.querySelectorAll('.track').length"
    )


def test_an_address_opens_its_text(chromium: Browser, file: Path) -> None:
    chromium.open(file, part="questions-3")
    chromium.wait(
        f"document.body && document.body.dataset.ready && {SHOWN}.startsWith('questions-3')"
    )
    assert "Tokyo" in chromium.run("document.querySelector('.passage').textContent")


def test_an_address_of_a_text_that_is_not_here_says_so_until_another_is_opened(
    chromium: Browser, file: Path
) -> None:
    chromium.open(file, part="nowhere-7")
    chromium.wait("document.body && document.body.dataset.ready")
    note = "document.querySelector('.head [role=status]')?.textContent"
    assert "nowhere-7" in chromium.run(note)
    chromium.run(OPEN_ALL)
    chromium.run(click("#row-2"))
    chromium.wait(f"!({note})")


def test_texts_of_one_id_in_two_data_sets_have_their_own_addresses(
    chromium: Browser, tmp_path: Path
) -> None:
    run = explorer_fakes.make(tmp_path)
    for path in (run.examples[1], run.outputs[1], run.scores):
        table = pd.read_parquet(path)
        table.assign(id=table["id"].replace("questions-3", "cities-markup-1")).to_parquet(path)
    explorer_fakes.write(run, tmp_path / "explorer.html")
    passage = "document.querySelector('.passage').textContent"
    for dataset in ("cities", "questions"):
        chromium.open(tmp_path / "explorer.html", part=f"{dataset}/cities-markup-1")
        chromium.wait("document.body && document.body.dataset.ready")
        assert ("Tokyo" in chromium.run(passage)) == (dataset == "questions")
        assert chromium.run("decodeURIComponent(location.hash)") == f"#{dataset}/cities-markup-1"
    chromium.open(tmp_path / "explorer.html", part="cities-markup-1")
    chromium.wait("document.body && document.body.dataset.ready")
    note = chromium.run("document.querySelector('.head [role=status]').textContent")
    assert "such as cities/cities-markup-1" in note


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explorer of a run with remarks and compared candidates."""
    folder = tmp_path_factory.mktemp("candidates")
    run = explorer_fakes.compare_candidates(explorer_fakes.make(folder), folder)
    explorer_fakes.write(
        run, folder / "explorer.html", candidates=explorer_fakes.candidate_files(folder)
    )
    return folder / "explorer.html"


@pytest.mark.parametrize("width", [1500, 390])
def test_candidates_are_two_ribbons_across_layers_and_tokens_in_words_in_light_and_dark(
    chromium: Browser, candidates: Path, width: int
) -> None:
    page = chromium
    page.requests.clear()
    page.messages.clear()
    page.open(candidates, width, part="cities-plain-6-1")
    page.wait("document.body && document.body.dataset.ready")
    said = page.run("document.querySelector('.race').textContent")
    for words in ("The remark asserts", "which is", "The output prefers", "logits"):
        assert words in said
    colours = "new Set([...document.querySelectorAll('.race .node')].map((node) => getComputedStyle(node).fill))"
    assert page.run(f"{colours}.size") == 2
    light = page.run(f"[...{colours}].join()")
    page.run(click("#theme"))
    assert page.run(f"[...{colours}].join()") != light
    # A lens dot per layer, and one of the output.
    assert page.run("document.querySelectorAll('.race .dot').length") == 4
    assert page.run("document.querySelectorAll('.race .lead').length") == 3
    page.run(click("[data-candidate='1']"))
    page.wait("document.querySelector('#feature h2')")
    assert "attribution here" in page.run("document.getElementById('feature').textContent")
    assert page.run("document.querySelectorAll('.track.chosen').length") == 1
    assert page.run("document.querySelectorAll('.drawing.of-answer .dimmed').length") == 0
    page.run("document.querySelectorAll('.steps button')[1].click()")
    page.wait("document.querySelectorAll('.steps button')[1].ariaPressed === 'true'")
    page.run("document.querySelector('[data-candidate=\"1\"]').focus()")
    page.press("ArrowDown")
    page.press("Enter", "\r")
    page.wait("document.querySelector('[data-candidate=\"2\"].chosen')")
    page.run(choose("race-axis", "tokens"))
    page.wait("document.querySelectorAll('.race .ribbon').length === 2")
    assert page.run("document.querySelectorAll('.race .slanted').length") == 22
    page.run("document.querySelector('.race details summary').click()")
    page.wait("document.querySelector('.race table')")
    assert page.run("document.querySelectorAll('.race tbody tr').length") == 4
    # The page itself never scrolls sideways; the drawing does.
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert quiet(page)


def test_texts_are_filtered_by_whether_the_output_was_misled(
    chromium: Browser, candidates: Path
) -> None:
    chromium.open(candidates)
    chromium.wait("document.body && document.body.dataset.ready")
    chromium.run(OPEN_ALL)
    counts = []
    for value, words in (("0", "it is misled"), ("1", "it does not follow the remark")):
        chromium.run(choose("sway", value))
        counts.append(int(chromium.run("document.getElementById('count').textContent").split()[0]))
        before = chromium.run(SHOWN)
        chromium.run(click("#row-0"))
        chromium.wait(f"{SHOWN} !== {before!r} && document.querySelector('.race')")
        assert words in chromium.run("document.querySelector('.race').textContent")
    assert min(counts) > 0
    chromium.run(choose("sway", ""))
    count = chromium.run("document.getElementById('count').textContent")
    assert f"{counts[0]} of {sum(counts)} misled after a false remark" in count


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explorer of a run with contexts, hallucinated spans and scores of tokens."""
    folder = tmp_path_factory.mktemp("spans")
    run = explorer_fakes.make(folder)
    explorer_fakes.write(run, folder / "explorer.html", **explorer_fakes.mark_spans(run, folder))
    return folder / "explorer.html"


@pytest.mark.parametrize("width", [1500, 390])
def test_spans_are_underlined_and_contexts_folded_and_tokens_have_a_verdict(
    chromium: Browser, spans: Path, width: int
) -> None:
    page = chromium
    page.requests.clear()
    page.messages.clear()
    page.open(spans, width, part="cities-plain-6-1")
    page.wait("document.body && document.body.dataset.ready")
    underlined = (
        "[...document.querySelectorAll('.passage u.span')].map((each) => each.textContent).join('')"
    )
    assert page.run(underlined) == "Lyon 6"[3:]
    assert page.run("document.querySelector('.passage u.soft').textContent") == "L"
    said = page.run("document.querySelector('.tokens-verdict').textContent")
    tokens = page.run("document.querySelectorAll('.token').length")
    assert said.startswith(f"Hallucinated tokens (underlined): {tokens} of {tokens}.")
    assert "calls 1 hallucinated, 1 of them rightly" in said
    page.run(choose("colour", "token"))
    page.wait("document.querySelector('.token').title.startsWith('token detector 0.100')")
    colours = "[...document.querySelectorAll('.token')].map((each) => getComputedStyle(each).backgroundColor)"
    found = page.run(colours)
    assert len(set(found[:-1])) == 1
    assert found[-1] != found[0]
    figures = page.run("document.querySelector('.figures').textContent")
    assert "token detector 0.100 (threshold 0.250): true" in figures
    assert "label of the token hallucinated" in figures
    # The context is folded, and stays open for the next text once it is opened.
    assert page.run("document.querySelector('details.context').open") is False
    page.run("document.querySelector('details.context summary').click()")
    context = "document.querySelector('details.context p').textContent"
    page.wait(f"{context}.startsWith('Passage 6')")
    assert page.run(context) == explorer_fakes.PASSAGE.format(6)
    page.run(OPEN_ALL)
    page.run(click("#row-1"))
    page.wait(f"{SHOWN}.startsWith('cities-markup-1') && {context}.startsWith('Passage 0')")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert quiet(page)


def test_texts_without_contexts_and_spans_have_neither(page: Browser) -> None:
    for selector in ("details.context", ".passage u", ".tokens-verdict"):
        assert page.run(f"document.querySelectorAll({selector!r}).length") == 0
    assert "token detector" not in page.run("document.body.innerText")

"""The page that scores what is typed: loopback only, limits, errors, and a real browser."""

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from browser import CHROMIUM, Browser, browser

from ghosttrack.cli import serve
from ghosttrack.detection.scored_texts import Reason, ScoredText, ScoredToken
from ghosttrack.errors import UserError
from ghosttrack.report import served

WRONG, RIGHT, OPEN = (
    "The capital of France is Berlin.",
    "The capital of France is Paris.",
    "Some day it <b>rains</b>.",
)


class Fake:
    """A detector that knows three statements."""

    about = {"quality": {"texts": 80, "datasets": ["facts"]}}  # noqa: RUF012

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def stream(
        self, texts: Sequence[Any], *, confidence: float, reasons: int
    ) -> Iterator[ScoredText]:
        self.seen += texts
        if not 0.5 <= confidence <= 1:
            raise UserError(f"confidence: {confidence} must be from 0.5 (never abstain) to 1")
        for number, each in enumerate(texts, start=1):
            text = each["text"]
            if text == "crash":
                raise ValueError("secret")
            probability = {WRONG: 0.9, RIGHT: 0.06}.get(text, 0.6)
            verdict = {WRONG: "hallucinated", RIGHT: "true"}.get(text, "abstain")
            start = text.rstrip(".").rfind(" ")
            token = ScoredToken(start, len(text) - 1, 6.2, 0.8)
            named = Reason(14, 86, "near time, zone", 0.05, (("zone of", " Rome", "."),), ("a",))
            yield ScoredText(
                str(number), text, start + 1, len(text) - 1, probability, 1.9, 1.1, verdict,
                [token], [named][:reasons], 0.9,
            )  # fmt: skip


@pytest.fixture
def server() -> Iterator[serve.Server]:
    with serve.Server(Fake(), "tiny", 0) as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.01,))
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def ask(
    server: serve.Server, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def ask_json(server: serve.Server, content: Any, **headers: str) -> tuple[int, Any]:
    headers = {"Content_Type": "application/json", **headers}
    body = content if isinstance(content, bytes) else json.dumps(content)
    status, _, answer = ask(server, "POST", "/score", body, **headers)
    return status, json.loads(answer)


def ask_form(server: serve.Server, **fields: str) -> tuple[int, str]:
    status, _, answer = ask(
        server, "POST", "/", urlencode(fields), Content_Type="application/x-www-form-urlencoded"
    )
    return status, answer


def test_the_server_listens_on_the_loopback_address_alone(server: serve.Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


def test_a_program_gets_the_same_mapping_as_a_line_of_the_jsonl_file(server: serve.Server) -> None:
    status, answer = ask_json(server, {"texts": [WRONG, {"text": RIGHT, "answer": "Paris"}]})
    assert status == 200
    assert [each["verdict"] for each in answer["scores"]] == ["hallucinated", "true"]
    assert answer["scores"][0]["reasons"][0]["name"] == "near time, zone"
    assert server.detector.seen[1]["answer"] == "Paris"  # type: ignore[attr-defined]
    assert ask_json(server, {"texts": [WRONG], "reasons": 0})[1]["scores"][0]["reasons"] == []


def test_the_page_says_the_verdict_of_every_line_in_words_and_shows_the_form_again(
    server: serve.Server,
) -> None:
    status, page = ask_form(server, texts=f"{WRONG}\r\n\r\n{RIGHT}\n{OPEN}", confidence="0.9")
    assert status == 200
    words = re.findall(r"<h2>(.*?)</h2>\s*<p>(.*?)</p>", page)
    assert [each[0] for each in words] == ["Probably hallucinated", "Probably true", "No verdict"]
    assert words[1][1] == "The detector gives 94 % for true."
    assert words[2][1].endswith("not enough for a verdict with a confidence of 90 %.")
    assert "<b>rains" not in page
    assert f"{WRONG}\n\n{RIGHT}\n" in page
    assert 'value="0.9" selected' in page


def test_square_brackets_mark_the_answer_of_a_statement(server: serve.Server) -> None:
    lines = ["The capital of France is [Berlin].", "A fact.[1] More [2, 3]", "x []", "plain"]
    assert ask_form(server, texts="\n".join(lines))[0] == 200
    assert [(each["text"], each.get("answer")) for each in server.detector.seen] == [  # type: ignore[attr-defined]
        (WRONG, "Berlin"),
        ("A fact.[1] More 2, 3", "2, 3"),
        ("x []", None),
        ("plain", None),
    ]


def test_two_marked_parts_are_refused(server: serve.Server) -> None:
    status, page = ask_form(server, texts="The [dog] and the [cat] sleep.")
    assert status == 400
    assert "2 parts of" in page


def test_marked_words_that_occur_again_later_are_refused(server: serve.Server) -> None:
    status, page = ask_form(server, texts="[May] comes before May in no year.")
    assert status == 400
    assert "occurs again after the brackets" in page
    assert ask_form(server, texts="May comes before [ May ] in no year.")[0] == 200


def test_an_abstention_with_a_reason_is_said_in_words() -> None:
    (score,) = Fake().stream([{"text": OPEN}], confidence=0.75, reasons=0)
    score = score._replace(verdict="abstain: unlike anything it was tested on")
    assert served.verdict_in_words(score, 0.75) == (
        "No verdict",
        "The detector gives 60 % for hallucinated. It abstains: unlike anything it was tested on.",
    )


def test_the_page_needs_no_script_and_no_other_address(server: serve.Server) -> None:
    for method, path in (("GET", "/"), ("POST", "/score")):
        status, headers, page = ask(server, method, path)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "script" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"].strip() == "GhostTrack"
        assert status in (200, 415)
    _, headers, page = ask(server, "GET", "/")
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:,|#main)", page)
    assert (
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        in headers["Content-Security-Policy"]
    )
    status, headers, nothing = ask(server, "HEAD", "/")
    assert (status, nothing) == (200, "")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "localhost"}, 421),
        ({"Host": "localhost:80"}, 421),
        ({"Host": "localhost:{port}0"}, 421),
        ({"Host": "localhost.evil.example:{port}"}, 421),
        ({"Host": "[::1]:{port}"}, 421),  # the server listens on IPv4 alone
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost"}, 403),
        ({"Origin": "https://localhost:{port}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "LocalHost:{port}", "Origin": "HTTP://LOCALHOST:{port}"}, 200),
    ],
)
def test_requests_of_other_sites_are_refused(
    server: serve.Server, headers: dict[str, str], status: int
) -> None:
    filled = {name: value.format(port=server.server_port) for name, value in headers.items()}
    found, answer = ask_json(server, {"texts": [WRONG]}, **filled)
    assert found == status
    assert ("error" in answer) == (status != 200)
    assert bool(server.detector.seen) == (status == 200)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost", "http://localhost", 200),
        ("127.0.0.1", "http://127.0.0.1", 200),
        ("localhost:80", "http://localhost", 200),
        ("evil.example", "http://localhost", 421),
        ("localhost:8765", "http://localhost", 421),
        ("localhost", "http://evil.example", 403),
        ("localhost", "http://localhost:8765", 403),
    ],
)
def test_at_port_80_browsers_name_no_port(
    server: serve.Server, host: str, origin: str, status: int
) -> None:
    bound, server.server_port = server.server_port, 80
    connection = http.client.HTTPConnection("127.0.0.1", bound, timeout=20)
    connection.request("GET", "/", headers={"Host": host, "Origin": origin})
    assert connection.getresponse().status == status


@pytest.mark.parametrize(
    ("content", "status", "error"),
    [
        (b"nonsense", 400, "expected a JSON object"),
        (b"[" * 9000, 400, "expected a JSON object"),
        (b"\xff", 400, "not UTF-8"),
        ({"texts": []}, 400, "there is no statement"),
        ({"texts": [7]}, 400, "text 1: expected a text"),
        ({"texts": ["a"] * 51}, 400, "51 statements, at most 50"),
        ({"texts": ["a"], "confidence": "high"}, 400, "confidence must be a number"),
        ({"texts": ["a"], "confidence": 2}, 400, "must be from 0.5"),
        ({"texts": ["a"], "temperature": 1}, 400, "unknown key 'temperature'"),
        ({"texts": ["a" * 70_000]}, 413, "at most 64,000"),
        ({"texts": ["crash"]}, 500, "the terminal shows why"),
    ],
)
def test_a_wrong_request_gets_one_clear_error(
    server: serve.Server, content: Any, status: int, error: str
) -> None:
    found, answer = ask_json(server, content)
    assert found == status
    assert list(answer) == ["error"]
    assert error in answer["error"]
    assert "secret" not in answer["error"]
    assert ask_json(server, {"texts": [WRONG]})[0] == 200  # the server goes on


def test_errors_are_shown_on_the_page_beside_what_was_typed(server: serve.Server) -> None:
    status, page = ask_form(server, texts=" \n ")
    assert status == 400
    assert re.search(r'role="alert">there is no statement', page)
    status, page = ask_form(server, texts=WRONG, confidence="3")
    assert status == 400
    assert "must be from 0.5" in page
    assert WRONG in page
    assert ask_form(server, texts=WRONG, confidence="x")[0] == 400
    status, _, page = ask(server, "GET", "/favicon.ico")
    assert status == 404
    assert "there is no GET /favicon.ico" in page
    assert ask(server, "POST", "/", "a=1")[0] == 415
    assert ask(server, "POST", "/score", iter([b"{}"]), Content_Type="application/json")[0] == 411


def test_a_silent_connection_does_not_keep_others_waiting(
    server: serve.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.Handler, "timeout", 0.3)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as silent:
        silent.sendall(b"POST /score HTTP/1.1\r\n")
        assert ask_json(server, {"texts": [WRONG]})[0] == 200
        assert silent.recv(100) == b""  # closed in time


def test_the_shared_context_is_read_before_statements_without_one(server: serve.Server) -> None:
    server.context = "Rome is in Italy."
    ask_json(server, {"texts": [WRONG, {"text": RIGHT, "context": "own"}]})
    assert [each["context"] for each in server.detector.seen] == [  # type: ignore[attr-defined]
        "Rome is in Italy.",
        "own",
    ]
    assert "Rome is in Italy." in ask(server, "GET", "/")[2]


def test_a_port_in_use_is_named_with_a_remedy(server: serve.Server) -> None:
    with pytest.raises(UserError, match=rf"port {server.server_port} cannot be used .* --port 0"):
        serve.Server(Fake(), "tiny", server.server_port)
    with pytest.raises(UserError, match="port 99999 cannot be used"):
        serve.Server(Fake(), "tiny", 99_999)


def test_a_wrong_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main([str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err.splitlines()[-1]


FILL = "document.getElementById('texts').value = %s; document.querySelector('form button').click()"
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_in_a_browser_statements_are_typed_and_verdicts_and_reasons_read(
    server: serve.Server, width: int
) -> None:
    with browser(offline=False) as page:
        page.open(server.url, width, 844)
        page.wait("document.querySelector('form')")
        page.run(FILL % json.dumps(f"{WRONG}\n{RIGHT}\n{OPEN}"))
        page.wait("document.querySelectorAll('.cards h2').length === 3")
        assert page.run("document.querySelector('.cards h2').innerText") == "Probably hallucinated"
        assert page.run("document.getElementById('texts').value").startswith(WRONG)
        page.run("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.run(FITS)
        assert "Rome" in page.run("document.querySelector('.reasons mark').innerText")
        # The style is applied: the policy allows it.
        for dark in (True, False):
            page.dark(dark=dark)
            paper = page.run("getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(18, 22, 27)" if dark else "rgb(255, 255, 255)")
        assert page.run("getComputedStyle(document.querySelector('.token')).backgroundColor") != (
            "rgba(0, 0, 0, 0)"
        )
        assert [url for url in page.requests if not url.startswith(server.url)] == []
        assert page.messages == []


def test_the_browser_of_the_tests_reaches_no_other_machine() -> None:
    assert Browser.__init__.__kwdefaults__ == {"offline": True}

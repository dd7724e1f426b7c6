"""`python -m ghosttrack.cli.serve RUN`: a page on this machine that scores what is typed."""

import argparse
import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs

from ghosttrack import api
from ghosttrack.cli.given_texts import read_context
from ghosttrack.cli.score import as_mapping, path_of
from ghosttrack.cli.waiting import limit_threads, log_to_stderr
from ghosttrack.detection.scored_texts import ScoredText
from ghosttrack.errors import UserError
from ghosttrack.inputs.answer_spans import last_span
from ghosttrack.report import served

log = logging.getLogger("ghosttrack")

ADDRESS = "127.0.0.1"
# The port that browsers leave out of Host and Origin.
HTTP_PORT = 80
# Largest request in bytes, and most statements in it: seconds of work.
LARGEST, MOST = 64_000, 50
# Bytes of a refused request that are read, so that its sender sees the answer.
DISCARDED = 4_000_000
# Seconds after which a connection that sends nothing is closed.
PATIENCE = 30
HTML, JSON = "text/html", "application/json"
_BRACKETS = re.compile(r"\[([^\[\]]*\w[^\[\]]*)\]")
# The number of a reference, right after a word or a full stop: [1], [2, 3].
_REFERENCE = re.compile(r"(?<=\S)\[\d+(?:\s?[,;-]\s?\d+)*\]")
FORM = "application/x-www-form-urlencoded"


class Scores(Protocol):
    """What the server needs of a detector."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Description of the detector."""

    def stream(
        self, texts: Sequence[Any], *, confidence: float, reasons: int
    ) -> Iterator[ScoredText]:
        """Scores of the texts in order."""


class RefusedError(Exception):
    """A request that gets no scores: its status and the reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Request(NamedTuple):
    """Statements to score, and the form to show again."""

    texts: list[Any]
    confidence: float
    reasons: int
    form: served.Form


class Server(ThreadingHTTPServer):
    """A server on the loopback address alone.

    Args:
        detector: scores the statements, one request at a time.
        run: name of the run.
        port: 0 for any free port.
        context: read before statements that have none.
    Raises:
        UserError: the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, detector: Scores, run: str, port: int, context: str = "") -> None:
        try:
            super().__init__((ADDRESS, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port: port {port} cannot be used ({error}); choose another with --port, or "
                "--port 0 for any free one"
            ) from None
        self.detector, self.context = detector, context
        self.about = {**detector.about, "run": run}
        self.one = threading.Lock()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """The names by which this machine's browsers reach the server, in lower case."""
        names = {ADDRESS, "localhost"}
        with_port = {f"{name}:{self.server_port}" for name in names}
        return names | with_port if self.server_port == HTTP_PORT else with_port

    def score(self, request: Request) -> list[ScoredText]:
        """Scores of a request's statements."""
        with self.one:
            return list(
                self.detector.stream(
                    request.texts, confidence=request.confidence, reasons=request.reasons
                )
            )


class Handler(BaseHTTPRequestHandler):
    """GET / gives the page; POST / the page with scores; POST /score takes and gives JSON."""

    server: Server
    server_version, sys_version = "GhostTrack", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Answer GET and HEAD."""
        form = served.Form(context=self.server.context)
        try:
            self._require_own_host()
            self._require_path("/")
            self._send_page(HTTPStatus.OK, form)
        except RefusedError as refused:
            self._refuse(refused, form)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """Score statements from the form or from JSON."""
        form = served.Form()
        try:
            self._require_own_host()
            self._require_path("/", "/score")
            body = self._body()
            request = self._from_json(body) if self._for_program() else self._from_form(body)
            form = request.form
            scores = self.server.score(request)
        except RefusedError as refused:
            self._refuse(refused, form)
        except UserError as error:
            self._refuse(RefusedError(HTTPStatus.BAD_REQUEST, str(error)), form)
        except Exception:
            log.exception("a request failed")
            reason = "the statement could not be scored; the terminal shows why"
            self._refuse(RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, reason), form)
        else:
            if self._for_program():
                self._send_json(HTTPStatus.OK, {"scores": [as_mapping(each) for each in scores]})
            else:
                self._send_page(HTTPStatus.OK, form, scores)

    def log_message(self, form: str, *values: Any) -> None:
        """Requests are not logged: statements are the user's."""

    def _require_own_host(self) -> None:
        """Refuse requests that other sites' pages send: DNS rebinding and cross-site forms."""
        hosts, url = self.server.hosts, self.server.url
        if self.headers.get("Host", "").lower() not in hosts:
            raise RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST, f"this server answers at {url} alone; open {url}"
            )
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in hosts}:
            raise RefusedError(
                HTTPStatus.FORBIDDEN, f"the request comes from another page; open {url}"
            )

    def _require_path(self, *known: str) -> None:
        if self.path not in known:
            raise RefusedError(
                HTTPStatus.NOT_FOUND,
                f"there is no {self.command} {self.path[:80]}; known are GET /, POST / and POST "
                "/score",
            )

    def _for_program(self) -> bool:
        return self.path == "/score"

    def _body(self) -> str:
        """The request's body.

        Raises:
            RefusedError: its type, length or encoding is wrong.
        """
        kind = self.headers.get_content_type()
        expected = JSON if self._for_program() else FORM
        if kind != expected:
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type: expected {expected}, found {kind}",
            )
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length: expected a number")
        if len(length) > 9 or int(length) > LARGEST:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {length[:20]} bytes, at most {LARGEST:,} are taken; score a file "
                "with make score",
            )
        try:
            return self.rfile.read(int(length)).decode()
        except UnicodeDecodeError:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request is not UTF-8") from None
        except TimeoutError:
            raise RefusedError(
                HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time"
            ) from None

    def _from_form(self, body: str) -> Request:
        try:
            fields = parse_qs(body, keep_blank_values=True, max_num_fields=10)
        except ValueError:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the form has too many fields") from None
        texts, context, confidence = (
            fields.get(name, [""])[0].replace("\r\n", "\n")
            for name in ("texts", "context", "confidence")
        )
        try:
            level = float(confidence or api.CONFIDENCE)
        except ValueError:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, f"confidence: expected a number, found {confidence[:20]!r}"
            ) from None
        lines = [line.strip() for line in texts.split("\n") if line.strip()]
        given = [{**_marked(line), "context": context} for line in lines]
        return Request(_few(given), level, 5, served.Form(texts, context, level))

    def _from_json(self, body: str) -> Request:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or not isinstance(content.get("texts"), list):
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                'expected a JSON object such as {"texts": ["The capital of France is Berlin."]}',
            )
        if unknown := set(content) - {"texts", "confidence", "reasons"}:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                f"unknown key {sorted(unknown)[0][:40]!r}; known are texts, confidence, reasons",
            )
        confidence, reasons = content.get("confidence", api.CONFIDENCE), content.get("reasons", 5)
        if type(confidence) not in (int, float) or type(reasons) is not int:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST, "confidence must be a number and reasons an integer"
            )
        texts: list[Any] = []
        for number, each in enumerate(_few(content["texts"]), start=1):
            if not isinstance(each, str | dict):
                raise RefusedError(
                    HTTPStatus.BAD_REQUEST, f"text {number}: expected a text or an object"
                )
            given = {"text": each} if isinstance(each, str) else each
            shared = "" if given.get("question") else self.server.context
            texts.append({"context": shared, **given})
        return Request(texts, confidence, min(max(reasons, 0), 50), served.Form())

    def _refuse(self, refused: RefusedError, form: served.Form) -> None:
        self.close_connection = True
        if self._for_program():
            self._send_json(refused.status, {"error": str(refused)})
        else:
            self._send_page(refused.status, form, error=str(refused))
        self._discard()

    def _discard(self) -> None:
        """Read what the client still sends: a closed connection could cost it the answer."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            for _ in range(DISCARDED // LARGEST):
                if not self.connection.recv(LARGEST):
                    break

    def _send_json(self, status: HTTPStatus, content: Any) -> None:
        self._send(status, JSON, json.dumps(content, ensure_ascii=False), "default-src 'none'")

    def _send_page(
        self,
        status: HTTPStatus,
        form: served.Form,
        scores: Sequence[ScoredText] = (),
        error: str = "",
    ) -> None:
        page = served.render(form, scores, self.server.about, error)
        self._send(status, HTML, page.html, page.policy)

    def _send(self, status: HTTPStatus, kind: str, content: str, policy: str) -> None:
        body = content.encode(errors="replace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            # no-referrer would make the origin of the form null.
            "Referrer-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _marked(line: str) -> dict[str, str]:
    """A statement, with its answer if one part of it is in square brackets.

    Raises:
        RefusedError: several parts are, or the part occurs again later.
    """
    references = {reference.span() for reference in _REFERENCE.finditer(line)}
    marks = [mark for mark in _BRACKETS.finditer(line) if mark.span() not in references]
    if not marks:
        return {"text": line}
    if len(marks) > 1:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST,
            f"{len(marks)} parts of {line[:40]!r} are in square brackets, which mark the part that is "
            "judged; leave the brackets of one part",
        )
    (mark,) = marks
    answer = mark[1]
    text = line[: mark.start()] + answer + line[mark.end() :]
    marked = mark.start() + len(answer) - len(answer.lstrip())
    found = last_span(text, answer.strip())
    if found and found[0] != marked:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST,
            f"{answer.strip()[:40]!r} occurs again after the brackets, and a marked part is judged at "
            "its last occurrence; mark that one, or shorten the text",
        )
    return {"text": text, "answer": answer}


def _few(texts: list[Any]) -> list[Any]:
    """The texts, if there is one and they are few.

    Raises:
        RefusedError: otherwise.
    """
    if not texts:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "there is no statement; type at least one")
    if len(texts) > MOST:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST,
            f"{len(texts):,} statements, at most {MOST} are taken; score a file with make score",
        )
    return texts


def main(arguments: list[str]) -> int:
    """Serve until Ctrl-C; exit code 2 after a user error."""
    parser = argparse.ArgumentParser(
        prog="ghosttrack.cli.serve",
        description="A page on this machine alone: type statements, see verdicts and reasons.",
    )
    parser.add_argument(
        "run", type=path_of, help="folder of a finished run, such as results/smollm2-135m"
    )
    parser.add_argument(
        "--port", type=int, default=8765, help="port of the page, 0 for any; default %(default)s"
    )
    parser.add_argument(
        "--context", type=path_of, help="text file that the model reads before each statement"
    )
    parser.add_argument(
        "--calibration", type=path_of, help="file that make calibrate has written for this run"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of this process; default %(default)s"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=1,
        help="number of GPUs over which the model is spread; default %(default)s",
    )
    chosen = parser.parse_args(arguments)
    log_to_stderr()
    try:
        limit_threads(chosen.threads)
        context = read_context(chosen.context)
        sys.stderr.write(f"loading {chosen.run}\n")
        detector = api.Detector.load(chosen.run, gpus=chosen.gpus, calibration=chosen.calibration)
        # The first statement reads tables that later ones share.
        detector.score(["Rome is in Italy."])
        with Server(detector, Path(chosen.run).resolve().name, chosen.port, context) as server:
            sys.stdout.write(f"{server.url} (Ctrl-C ends it)\n")
            sys.stdout.flush()
            server.serve_forever()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("ended\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

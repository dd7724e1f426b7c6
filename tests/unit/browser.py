"""A headless Chromium for tests: pages from files, no network, recorded requests and messages.

Commands go over two pipes (Chrome DevTools Protocol), so that no driver and no port are needed.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Options of every start: no window, no network.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# The same with servers on this machine's loopback address alone.
LOOPBACK = (*OPTIONS[:-1], "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
# File descriptors of commands and answers under --remote-debugging-pipe.
_READS, _WRITES = 3, 4


class Browser:
    """One page of a running browser."""

    def __init__(self, commands: int, answers: int, *, offline: bool = True) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._waiting = 0, b""
        self.requests: list[str] = []  # URLs that the page requested, without its own file
        self.messages: list[str] = []  # everything that reached the console
        target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._send(f"{domain}.enable")
        self._send("Performance.enable", {"timeDomain": "threadTicks"})
        if offline:
            off = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            self._send("Network.emulateNetworkConditions", off)

    def open(self, page: Path | str, width: int = 1500, height: int = 950, part: str = "") -> None:
        """Load a file or an address in a window; `part` is the fragment after # in its address."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("Emulation.setDeviceMetricsOverride", size)
        self._page = page if isinstance(page, str) else page.as_uri()
        self._send(
            "Page.navigate", {"url": "about:blank"}
        )  # a change of the fragment alone would not reload the page
        self._send("Page.navigate", {"url": f"{self._page}#{part}" if part else self._page})

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression in the page; a promise is awaited.

        Raises:
            AssertionError: the script threw; the message is what it threw.
        """
        request = {
            "expression": script,
            "awaitPromise": True,
            "returnByValue": True,
            "userGesture": True,
        }
        answer = self._send("Runtime.evaluate", request)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until a JavaScript expression is true, also on the next page; at most `seconds`."""
        script = (
            f"new Promise((done, fail) => {{ const end = performance.now() + {1000 * seconds};"
            f"const look = () => ({condition}) ? done() : performance.now() > end ? fail(new Error({json.dumps(condition)})) : setTimeout(look, 5);"
            "look(); })"
        )
        end = time.monotonic() + seconds
        while True:
            try:
                self.run(script)
                return
            except AssertionError as error:  # the page that was waited in is gone
                if "navigated" not in str(error) or time.monotonic() > end:
                    raise

    def press(self, key: str, text: str = "") -> None:
        """Press a key in the focused element."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": _CODES.get(key, 0)}
        self._send(
            "Input.dispatchKeyEvent",
            {"type": "keyDown", "text": text, **about} if text else {"type": "rawKeyDown", **about},
        )
        self._send("Input.dispatchKeyEvent", {"type": "keyUp", **about})

    def busy(self) -> float:
        """CPU seconds of the page's main thread so far; other load does not count."""
        metrics = self._send("Performance.getMetrics")["metrics"]
        return float(
            next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
        )

    def dark(self, *, dark: bool) -> None:
        """Prefer the dark or the light colours."""
        value = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", {"features": [value]})

    def screenshot(self, path: Path) -> None:
        """Write the visible part of the page as a PNG."""
        path.write_bytes(
            base64.b64decode(self._send("Page.captureScreenshot", {"format": "png"})["data"])
        )

    def _send(self, method: str, parameters: dict[str, Any] | None = None) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters or {}}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def _receive(self) -> Any:
        while b"\0" not in self._waiting:
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser is gone"
            self._waiting += more
        first, self._waiting = self._waiting.split(b"\0", 1)
        return json.loads(first)

    def _note(self, event: Any) -> None:
        about = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                url = about["request"]["url"]
                if url not in (self._page, "about:blank") and not url.startswith("data:"):
                    self.requests.append(url)
            case "Runtime.consoleAPICalled":
                self.messages.append(json.dumps(about["args"]))
            case "Runtime.exceptionThrown":
                self.messages.append(json.dumps(about["exceptionDetails"]))
            case "Log.entryAdded":
                self.messages.append(about["entry"]["text"])


_CODES = {
    "Tab": 9,
    "Enter": 13,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


@contextmanager
def browser(*, offline: bool = True) -> Iterator[Browser]:
    """Start a browser with a temporary profile, and end it.

    offline: whether it reaches nothing at all; otherwise the loopback address.
    """
    assert CHROMIUM is not None
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()
    # Not below pytest's folder, because the browser's socket paths must stay short.
    with tempfile.TemporaryDirectory(prefix="gt", ignore_cleanup_errors=True) as profile:
        command = [
            CHROMIUM,
            *(OPTIONS if offline else LOOPBACK),
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        # A shell moves the pipes to the descriptors that the browser expects.
        shell = f'exec "$@" {_READS}<&{to_browser} {_WRITES}>&{from_browser}'
        child = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(to_browser, from_browser),
            env={**os.environ, "HOME": profile},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Browser(commands, answers, offline=offline)
        finally:
            child.terminate()
            child.wait(timeout=20)
            os.close(commands)
            os.close(answers)

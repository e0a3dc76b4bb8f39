"""Opens a page in a headless Chromium over the DevTools protocol: requests, errors, width and a screenshot."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["CHROMIUM", "Look", "Tab", "look", "opened"]

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
"""Path of the installed browser; empty if there is none."""


@dataclass
class Look:
    """What a browser reports about a page.

    Attributes:
        requests: all requested URLs, that of the page first, without `data:`.
        errors: messages of console and loader.
        scroll_width: width of the page; one wider than the window scrolls horizontally.
        answers: values of the scripts that were evaluated in it.
        image: screenshot of the whole page as PNG.
    """

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    scroll_width: int = 0
    answers: list[Any] = field(default_factory=list)
    image: bytes = b""


def look(
    browser: str, page: Path, profile: Path, *, width: int = 1400, dark: bool = False, scripts: tuple[str, ...] = ()
) -> Look:
    """Open a file in a window of this width, in light or dark mode."""
    with opened(browser, profile, width=width, dark=dark) as tab:
        tab.visit(page.resolve().as_uri())
        tab.seen.scroll_width = int(tab.ask("document.documentElement.scrollWidth"))
        tab.seen.answers = [tab.ask(script) for script in scripts]
        tab.seen.image = tab.image(whole=True)
        return tab.seen


@contextlib.contextmanager
def opened(browser: str, profile: Path, *, width: int = 1400, height: int = 900, dark: bool = False) -> Iterator[Tab]:
    """Start a browser with one tab and a window of this size, in light or dark mode, and end it afterwards."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        socket = _socket(browser, profile)
        tab = Tab(runner, runner.run(socket.__aenter__()))
        stack.callback(lambda: runner.run(socket.__aexit__(None, None, None)))
        for domain in ("Page", "Network", "Log", "Runtime"):
            tab.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        tab.call("Emulation.setEmulatedMedia", features=scheme)
        yield tab


class Tab:
    """A browser tab. Requests and errors are collected in `seen`."""

    def __init__(self, runner: asyncio.Runner, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.seen = Look()
        self._runner, self._socket, self._number = runner, socket, 0

    def visit(self, url: str) -> None:
        """Open a URL and wait for its load event; another fragment of the same page is loaded again."""
        self.call("Page.navigate", url="about:blank", wait_for="Page.loadEventFired")
        self.call("Page.navigate", url=url, wait_for="Page.loadEventFired")

    def ask(self, script: str) -> Any:
        """Evaluate an expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def until(self, script: str, seconds: float = 30.0) -> Any:
        """Evaluate an expression until it is true, and return its value."""
        deadline = time.monotonic() + seconds
        while not (answer := self.ask(script)):
            text = "document.body.innerText.slice(0, 2000)"
            assert time.monotonic() < deadline, f"{script} is not true on {self.ask('location.href')}: {self.ask(text)}"
            self._runner.run(asyncio.sleep(0.2))
        return answer

    def image(self, *, whole: bool = False) -> bytes:
        """Screenshot of the window or of the whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def call(self, method: str, wait_for: str = "", **parameters: Any) -> Any:
        """Send a command and return its result, after the event `wait_for` if it is given."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        return self._runner.run(asyncio.wait_for(self._answered(request, wait_for), 120))

    async def _answered(self, request: dict[str, Any], wait_for: str) -> Any:
        await self._socket.send_json(request)
        result: Any = None
        async for message in self._socket:
            reply = json.loads(message.data)
            if reply.get("id") == request["id"]:
                assert "error" not in reply, f"{request['method']}: {reply['error']}"
                result = reply["result"]
            elif "method" in reply:
                _note(self.seen, reply["method"], reply["params"])
                if reply["method"] == wait_for:
                    wait_for = ""
            if result is not None and not wait_for:
                return result
        raise AssertionError(f"the browser closed the connection during {request['method']}")


def _note(seen: Look, method: str, parameters: dict[str, Any]) -> None:
    if method == "Network.requestWillBeSent":
        url = parameters["request"]["url"]
        if not url.startswith("data:"):
            seen.requests.append(url)
    elif method == "Log.entryAdded":
        seen.errors.append(parameters["entry"]["text"])
    elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
        seen.errors.append(str(parameters["args"]))
    elif method == "Runtime.exceptionThrown":
        seen.errors.append(str(parameters["exceptionDetails"]))


@contextlib.asynccontextmanager
async def _socket(browser: str, profile: Path) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Start a browser, yield the socket of its only tab, and end it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen([browser, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 120
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert process.poll() is None, f"{browser} exited with {process.returncode}"
            assert time.monotonic() < deadline, f"{browser} opened no port"
            await asyncio.sleep(0.1)
        port = port_file.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                (tab,) = [one for one in await answer.json() if one["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield socket
    finally:
        process.terminate()
        process.wait(30)

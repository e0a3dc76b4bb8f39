"""A page as a headless Chromium has it: what it asks of any network, what it complains of, how wide it is, a picture.

Speaks the DevTools protocol over a web socket of this machine.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["Look", "look"]


@dataclass
class Look:
    """What a browser saw of a page.

    Attributes:
        requests: every address that was asked for, the page's own first; `data:` left out.
        complaints: of console and loader, as text.
        scroll_width: of the page; wider than the window is a page that scrolls sideways.
        answers: of the scripts that were run in it.
        picture: PNG of the whole page.
    """

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    scroll_width: int = 0
    answers: list[Any] = field(default_factory=list)
    picture: bytes = b""


def look(
    browser: str, page: Path, profile: Path, *, width: int = 1400, dark: bool = False, scripts: tuple[str, ...] = ()
) -> Look:
    """Open a file in a window of this width, in light or dark."""
    return asyncio.run(_look(browser, page.resolve().as_uri(), profile, width, dark, scripts))


async def _look(browser: str, url: str, profile: Path, width: int, dark: bool, scripts: tuple[str, ...]) -> Look:
    seen = Look()
    async with _socket(browser, profile) as socket:
        answers: dict[int, asyncio.Future[Any]] = {}
        loaded = asyncio.Event()

        async def listen() -> None:
            async for message in socket:
                said = json.loads(message.data)
                if "id" in said:
                    answers[said["id"]].set_result(said)
                elif said["method"] == "Page.loadEventFired":
                    loaded.set()
                else:
                    _note(seen, said["method"], said["params"])

        listener = asyncio.create_task(listen())

        async def call(method: str, **parameters: Any) -> Any:
            number = len(answers)
            answers[number] = asyncio.get_running_loop().create_future()
            await socket.send_json({"id": number, "method": method, "params": parameters})
            said = await asyncio.wait_for(answers[number], 120)
            assert "error" not in said, f"{method}: {said['error']}"
            return said["result"]

        for domain in ("Page", "Network", "Log", "Runtime"):
            await call(f"{domain}.enable")
        await call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await call("Emulation.setEmulatedMedia", features=scheme)
        await call("Page.navigate", url=url)
        await asyncio.wait_for(loaded.wait(), 120)
        for script in ("document.documentElement.scrollWidth", *scripts):
            said = await call("Runtime.evaluate", expression=script, returnByValue=True)
            seen.answers.append(said["result"].get("value"))
        seen.scroll_width = int(seen.answers.pop(0))
        shot = await call("Page.captureScreenshot", captureBeyondViewport=True)
        seen.picture = base64.b64decode(shot["data"])
        listener.cancel()
    return seen


def _note(seen: Look, method: str, parameters: dict[str, Any]) -> None:
    if method == "Network.requestWillBeSent":
        url = parameters["request"]["url"]
        if not url.startswith("data:"):
            seen.requests.append(url)
    elif method == "Log.entryAdded":
        seen.complaints.append(parameters["entry"]["text"])
    elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
        seen.complaints.append(str(parameters["args"]))
    elif method == "Runtime.exceptionThrown":
        seen.complaints.append(str(parameters["exceptionDetails"]))


@contextlib.asynccontextmanager
async def _socket(browser: str, profile: Path) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A browser of its own, ended afterwards, and the socket of its one tab."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen([browser, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 120
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert process.poll() is None, f"{browser} ended with {process.returncode}"
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

"""A headless Chromium for tests: how wide a page is at a given width, what its console says, what it looks like.

The page itself runs no script; the measuring is done by another page that shows it in a frame of the width asked for
(the browser's own window is never narrower than 500 pixels).
"""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_LOGGING = ("--enable-logging=stderr", "--v=0")

needs_chromium = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt-get install chromium)")

# `srcdoc` makes the frame one of ours, so that its insides can be measured; details are opened as a reader would
_FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="f" style="border:0;display:block;width:{width}px;height:{height}px" srcdoc="{page}"></iframe>
<pre id="result"></pre>
<script>
const frame = document.getElementById("f");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, wide = [];
  if ({opened}) page.querySelectorAll("details").forEach(d => d.open = true);
  const limit = frame.contentWindow.innerWidth;
  page.querySelectorAll("main *").forEach(e => {{
    if (e.getBoundingClientRect().right > limit + 1) wide.push(e.tagName + "." + (e.getAttribute("class") || ""));
  }});
  const found = {{
    scrollWidth: page.scrollingElement.scrollWidth, innerWidth: limit, wide: wide.slice(0, 10),
    height: page.scrollingElement.scrollHeight, elements: page.querySelectorAll("*").length,
    scripts: page.querySelectorAll("script").length, ran: frame.contentWindow.ran === true || window.ran === true,
    smallest: Math.min(...[...page.querySelectorAll("p, th, td, .text, svg text")].filter(e => e.textContent.trim())
      .map(e => parseFloat(getComputedStyle(e).fontSize) * (e.ownerSVGElement
        ? e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width : 1))),
  }};
  document.getElementById("result").textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
}});
</script>"""


@dataclass(frozen=True)
class Look:
    """What the browser made of a page."""

    figures: dict
    console: list[str]


def _run(profile: Path, *args: str) -> subprocess.CompletedProcess:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += ["--no-first-run", "--disable-extensions", "--disable-background-networking"]
    command += [f"--user-data-dir={profile}"]
    return subprocess.run([*command, *args], capture_output=True, text=True, timeout=240, errors="replace")


def look(page: Path, width: int, folder: Path, *, opened: bool = True, height: int = 3000) -> Look:
    """Show a page in a frame of so many pixels and measure it; `opened` unfolds all that is folded."""
    framed = folder / f"frame-{width}.html"
    source = html.escape(page.read_text("utf-8"), quote=True)
    framed.write_text(
        _FRAME.format(width=width, height=height, page=source, opened=json.dumps(opened)), encoding="utf-8"
    )
    options = (*_LOGGING, "--virtual-time-budget=10000", f"--window-size={max(width, 500)},{height}", "--dump-dom")
    done = _run(folder / "profile", *options, framed.as_uri())
    found = re.search(r'<pre id="result">([^<]+)</pre>', done.stdout)
    assert found, done.stderr[-3000:]
    # errors of a page are logged with the word CONSOLE; what the browser says of itself (D-Bus, GPU) is no matter
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Look(json.loads(base64.b64decode(found[1])), console)


def screenshot(page: Path, width: int, height: int, target: Path, folder: Path) -> bytes:
    """A picture of the beginning of a page, at most `height` pixels of it."""
    if width < 500:
        framed = folder / f"shot-{width}.html"
        source = html.escape(page.read_text("utf-8"), quote=True)
        framed.write_text(_FRAME.format(width=width, height=height, page=source, opened="false"), encoding="utf-8")
        page = framed
    size = f"--window-size={max(width, 500)},{height}"
    _run(folder / "profile", size, "--virtual-time-budget=5000", f"--screenshot={target}", page.as_uri())
    return target.read_bytes()


def opened_directly(page: Path, folder: Path) -> list[str]:
    """The console of the page as a user opens it, not framed."""
    done = _run(folder / "profile", *_LOGGING, "--virtual-time-budget=5000", "--dump-dom", page.as_uri())
    assert "</html>" in done.stdout, done.stderr[-3000:]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]

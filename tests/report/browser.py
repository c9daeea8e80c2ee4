"""Open a page in a headless browser and let a script ask it things."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom",
)  # fmt: skip
_RESULT = '<script type="application/json" id="asked">'


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page: the script's answer, the document, and the console's lines."""

    answer: object
    document: str
    console: list[str]


def find_browser():
    """Path of a Chromium; skips the test by name where there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("no Chromium here (chromium, google-chrome)")


def look(page, script, folder, *, width=1400, dark=False):
    """Load ``page`` (text) from a file and run ``script`` in it, an async function body whose value counts.

    The script's hash is added to the page's own policy, which stays as strict for all the rest.
    """
    browser = find_browser()
    driver = (
        f"(async () => {{ const answer = await (async () => {{ {script} }})();"
        'const node = document.createElement("script"); node.type = "application/json"; node.id = "asked";'
        'node.textContent = JSON.stringify(answer).replaceAll("<", "\\\\u003c");'
        "document.body.append(node); })();"
    )
    digest = base64.b64encode(hashlib.sha256(driver.encode()).digest()).decode()
    text = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    text = text.replace("</body>", f"<script>{driver}</script></body>")
    path = folder / "asked.html"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            *FLAGS,
            f"--window-size={width},1000",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            path.as_uri(),
        ],
        capture_output=True,
        timeout=150,
        check=True,
    )
    document = done.stdout.decode("utf-8")
    console = re.findall(r"CONSOLE.*", done.stderr.decode("utf-8", "replace"))
    assert _RESULT in document, (console, document[-2000:])
    answer = document.rsplit(_RESULT, 1)[1].split("</script>", 1)[0]
    return Seen(json.loads(unescape(answer)), document, console)

"""Pages in a browser, where there is one."""

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


def told(page, element, profile, *flags):
    """The JSON that a page's script has written into ``<pre id=element>``, five seconds of its own time later."""
    usual = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    command = [BROWSER, *usual, *flags, f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    return json.loads(html.unescape(re.search(rf'<pre id="{element}">(.*)</pre>', done.stdout)[1]))

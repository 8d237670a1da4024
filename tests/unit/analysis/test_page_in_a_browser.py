"""The page in a real browser: no error on its console, no request, nothing wider than the window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mslt_ds.cli import main
from tests.unit.analysis.runs import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

WIDE, NARROW = 1200, 500  # a window can't be narrower than 500 pixels without a phone's emulation


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page")
    runs = [write_run(root / "mslt", trust=True), write_run(root / "full", "full")]
    assert main(["report", *map(str, runs), "--output", str(root / "out")]) == 0
    return root / "out" / "index.html"


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-quic", f"--user-data-dir={profile}", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip


def test_no_error_and_no_request(page, tmp_path):
    probe = page.with_name("requests.html")
    script = """<script>addEventListener("load", () => { document.title =
        JSON.stringify(performance.getEntriesByType("resource").map(e => e.name)) })</script></body>"""
    probe.write_text(page.read_text().replace("</body>", script))
    done = browse(probe, tmp_path / "p", "--enable-logging=stderr", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert [url for url in json.loads(title[1]) if not url.startswith("data:")] == []


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_fits_the_window_and_shows_the_drawing_for_it(page, tmp_path, width):
    probe = page.with_name(f"probe_{width}.html")
    script = """<script>document.title = JSON.stringify({
        page: document.documentElement.scrollWidth, window: innerWidth,
        shown: [...document.querySelectorAll("figure svg")].filter(s => s.getClientRects().length)
            .map(s => s.getAttribute("class")) })</script></body>"""
    probe.write_text(page.read_text().replace("</body>", script))
    done = browse(probe, tmp_path / "p", f"--window-size={width},900", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    measured = json.loads(title[1])
    assert measured["page"] <= measured["window"] == width
    assert set(measured["shown"]) == {"wide" if width == WIDE else "narrow"}


def test_a_phone_shows_the_cells_beside_long_row_heads(tmp_path):
    run = write_run(tmp_path / "run")
    assert main(["report", str(run), "--output", str(tmp_path)]) == 0
    probe = tmp_path / "phone.html"
    probe.write_text("""<iframe src="index.html" width="360" height="700" style="border: 0"></iframe><script>
        const frame = document.querySelector("iframe");
        frame.onload = () => { const page = frame.contentDocument; document.title = JSON.stringify({
            page: page.documentElement.scrollWidth,
            heads: [...page.querySelectorAll("tbody th")].map(
                th => th.offsetWidth / th.closest(".scroll").clientWidth) }) }</script>""")
    done = browse(probe, tmp_path / "p", "--allow-file-access-from-files", "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    measured = json.loads(title[1])
    assert measured["page"] <= 360
    assert measured["heads"] and max(measured["heads"]) < 0.5, (
        "they stay in place while cells scroll"
    )


@pytest.mark.parametrize("dark", [True, False])
def test_theme_of_the_system(page, tmp_path, dark):
    probe = page.with_name(f"theme_{dark}.html")
    script = """<script>const of = s => getComputedStyle(document.querySelector(s));
        document.title = [of("body").backgroundColor, of("figure svg text").fill].join("|")</script></body>"""
    probe.write_text(page.read_text().replace("</body>", script))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = browse(probe, tmp_path / "p", scheme, "--dump-dom")
    colors = re.findall(r"rgb\((\d+), (\d+), (\d+)\)", done.stdout.split("</title>")[0])
    background, text = (sum(map(int, color)) / 3 for color in colors)
    assert (background < 60) == dark
    assert abs(background - text) > 80

"""The page of a coordinator at work, as it is written and as a browser shows it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.pages import Page, write_run

from fedshift.server.fleet.asgi import AsgiServer
from fedshift.server.fleet.dashboard import Dashboard
from fedshift.server.report.live import LivePage, LiveRun, LiveSite, Refused, ago

HOSTILE = "<script>document.title='taken'</script><img src=http://evil.example/x.png>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LiveRun:
    folder = write_run(tmp_path_factory.mktemp("live") / "run", ["north", "south"], rounds=3)
    (folder / "cross_site.csv").unlink()
    return LiveRun("hearts", "going", "", "", 4, 10, "round 3", ["south"], folder)


@pytest.fixture(scope="module")
def page(run: LiveRun) -> str:
    now = time.time()
    sites = [
        LiveSite("north", True, now - 125, "0.1.0", 0, 0, 12_300_000, 45_000_000),
        LiveSite("south", False, now - 600, HOSTILE, 1, 2, 1_000, 2_000),
        LiveSite("never", False, None, "", 0, 0, 0, 0),
    ]
    failed = LiveRun("lungs", "failed", HOSTILE, "", 0, 10, "", [], run.folder / "none")
    refused = [Refused(now - 60, "south", HOSTILE)]
    return LivePage().draw(sites, [failed, run], refused)


def test_it_tells_of_sites_runs_and_refusals(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    found = Page(tmp_path / "page.html")
    rows = found.cells[""]
    assert ["north", "here", "2 min ago", "0.1.0", "0", "0", "12.3 MB", "45.0 MB"] in rows
    assert ["never", "away", "not yet", "–", "0", "0", "0 B"] in [row[:-1] for row in rows]
    assert ["hearts", "going", "4 of 10", "waits for south; last: round 3"] in rows
    assert "1 of 3 sites in contact · 1 run going" in found.text
    assert "hearts: round 4 of 10; waits for south" in found.text
    assert "out of memory" in found.text  # As rounds.jsonl has it.


def test_it_asks_nothing_of_anybody(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    found = Page(tmp_path / "page.html")
    assert all(link.startswith("data:image/png") for link in found.links)
    assert found.tags.count("script") == 1 and found.tags.count("img") == 1
    assert not {"form", "iframe", "link", "a", "object"} & {*found.tags}


def test_curves_are_drawn_anew_when_there_is_a_new_round_alone(
    run: LiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedshift.server.report import live

    drawn: list[int] = []
    curves = live.curves
    monkeypatch.setattr(live, "curves", lambda found: drawn.append(1) or curves(found))
    page = LivePage()
    first = page.draw([], [run], [])
    assert page.draw([], [run], [])[-200:] == first[-200:] and len(drawn) == 1
    lines = run.folder / "rounds.jsonl"
    whole = lines.read_bytes()
    try:
        lines.write_bytes(whole + b'{"round": 4, "si')  # A round's line that is being written.
        assert "data:image/png" in page.draw([], [run], [])
    finally:
        lines.write_bytes(whole)


@pytest.mark.parametrize(
    ("seconds", "told"), [(-1, "0 s"), (59, "59 s"), (150, "2 min"), (7300, "2 h"), (2e5, "2 days")]
)
def test_ages_are_told_in_the_unit_that_fits(seconds: float, told: str) -> None:
    assert ago(seconds) == told


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed here")
    return found


@pytest.fixture
def address(page: str) -> Iterator[str]:
    with AsgiServer(Dashboard(lambda: page), "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.port}/"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_and_runs_nothing_that_a_site_said(
    browser: str, address: str, width: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            f"--window-size={width},1200",
            "--enable-logging=stderr",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>Coordinator</title>" in done.stdout
    assert "hearts" in done.stdout and "data:image/png;base64," in done.stdout
    assert done.stdout.count("<script") == 1 and "&lt;script&gt;" in done.stdout
    assert "Content Security Policy" not in done.stderr

"""What a person sees: TensorBoard's page of a run, opened in a real browser."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.monitor.fake import monitors, play

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture
def page(tmp_path):
    """The address at which TensorBoard shows two runs."""
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        told = monitors(tmp_path / "runs" / name, "tensorboard")
        told.finish("finished", play(told, 1, 60))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", tmp_path / "runs", "--port", str(port)]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while b"best/test/accuracy" not in get(f"{address}/data/plugin/scalars/tags"):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, "TensorBoard did not read the run within a minute"
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(10)


def get(address):
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read()
    except OSError:  # not up yet
        return b""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_the_charts_of_two_runs_are_on_the_page(tmp_path, page):
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1400"]
    command += ["--virtual-time-budget=20000", "--dump-dom", f"{page}/#timeseries"]
    html = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    charts = re.findall(r'<tb-truncated-path[^>]* title="([^"]+)"', html)
    assert charts[:4] == [
        "best/test/accuracy",
        "best/test/loss",
        "by_seconds/test/accuracy",
        "by_seconds/test/loss",
    ]
    words = re.sub(r"<[^>]*>", " ", html).split()
    table = words[words.index("Smoothed") :]  # below the first chart: run, smoothed, value, step, time
    for run in ("first", "second"):
        start = table.index(run)
        assert table[start + 2 : start + 4] == ["0.7492", "50"]

"""What a person sees: TensorBoard's page of a run, opened in a real browser."""

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.monitor.fake import CONFIG, loss, monitors, play

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

pytestmark = pytest.mark.slow
OPTIMIZERS = {"first": "adafisher", "second": "adamw"}
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address at which TensorBoard shows two runs."""
    tmp_path = tmp_path_factory.mktemp("tensorboard")
    for number, (name, optimizer) in enumerate(OPTIMIZERS.items(), 1):
        (tmp_path / "runs" / name).mkdir(parents=True)
        options = {**CONFIG["optimizer"], "name": optimizer, "lr": number * 1e-3}
        config = {**CONFIG, "seed": number, "optimizer": options}
        told = monitors(tmp_path / "runs" / name, "tensorboard", config=config)
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


def get(address, question=None):
    """What the server answers; a question is sent as JSON."""
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()
    except OSError:  # not up yet
        return b""


def looked_at(page, tmp_path):
    """The document that the browser makes of a page, as soon as it has come to rest and has charts."""
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1400"]
    command += ["--virtual-time-budget=20000", "--dump-dom", page]
    for _ in range(5):  # its time may run ahead of a server that is slow to answer
        html = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        if charts_on(html):
            break
    return html


def charts_on(html):
    return re.findall(r'<tb-truncated-path[^>]* title="([^"]+)"', html)


@pytest.mark.browser
@needs_browser
def test_the_charts_of_two_runs_are_on_the_page(tmp_path, page):
    html = looked_at(f"{page}/#timeseries", tmp_path)
    assert charts_on(html)[:4] == [
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


@pytest.mark.browser
@needs_browser
def test_the_predictions_of_two_runs_are_on_the_page(tmp_path, page):
    html = looked_at(f"{page}/?tagFilter=predictions#timeseries", tmp_path)
    assert charts_on(html) == ["test/predictions"] * 2
    addresses = re.findall(r'<img[^>]* src="([^"]*image[^"]*)"', html)
    assert len(addresses) == 2
    for address in addresses:
        assert get(f"{page}/{address}").startswith(b"\x89PNG")


def test_what_was_written_is_in_the_text_tab(page):
    """The tab itself is in a shadow DOM, which is not dumped: what it fetches."""
    shown = json.loads(get(f"{page}/data/plugin/text/text?run=first&tag=val/sample/text_summary"))
    assert [event["step"] for event in shown] == [10, 20, 30, 40, 50, 60]
    assert "<pre><code>To be at step 60,\n  or not to be\n</code></pre>" in shown[-1]["text"]


def test_runs_are_compared_in_the_hparams_tab(page):
    """One row a run, with the options that differ, the final value of the primary metric and the best."""
    experiment = json.loads(get(f"{page}/data/plugin/hparams/experiment", {"experimentName": ""}))
    differing = {option["name"] for option in experiment["hparamInfos"] if option.get("differs")}
    assert differing == {"optimizer.name", "optimizer.lr", "seed"}
    names = ("test/accuracy", "best/test/accuracy", "test/loss")
    assert {name for name in names if {"tag": name, "group": ""} in metric_names(experiment)} == set(names)

    columns = [{"metric": {"tag": name, "group": ""}} for name in names]
    columns += [{"hparam": name} for name in ("optimizer.name", "optimizer.lr")]
    question = {"experimentName": "", "colParams": columns, "startIndex": 0, "sliceSize": 10}
    question["allowedStatuses"] = ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_UNKNOWN", "STATUS_RUNNING"]
    rows = json.loads(get(f"{page}/data/plugin/hparams/session_groups", question))["sessionGroups"]
    assert {row["name"]: row["hparams"]["optimizer.name"] for row in rows} == OPTIMIZERS
    for row in rows:
        values = {value["name"]["tag"]: value for value in row["metricValues"]}
        final, best = values["test/accuracy"], values["best/test/accuracy"]
        assert (final["trainingStep"], final["value"]) == (60, pytest.approx(math.exp(-loss(60))))
        assert (best["trainingStep"], best["value"]) == (50, pytest.approx(math.exp(-loss(50))))


def metric_names(experiment):
    return [metric["name"] for metric in experiment["metricInfos"]]

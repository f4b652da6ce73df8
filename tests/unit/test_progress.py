"""Plain lines of progress, and ranks that a verb starts."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from dlrm_dist import local_ranks, progress
from tests.helpers import ROOT


def test_lines_say_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    lines = progress.Lines(10_000, "evaluate", out, seconds=30)
    for _ in range(7):
        now[0] += 10
        lines.update(1000)
    assert out.getvalue().splitlines() == [
        "evaluate: 3,000 of 10,000 rows, 100 rows/s, 0:01:10 left",
        "evaluate: 6,000 of 10,000 rows, 100 rows/s, 0:00:40 left",
    ]


def test_what_is_done_soon_says_nothing(capsys):
    with progress.progress(10, "evaluate") as shown:
        shown.update(10)
    with progress.progress(10, "evaluate", speaks=False) as shown:
        shown.update(10)
    assert capsys.readouterr() == ("", "")


def test_the_code_of_the_rank_that_failed(monkeypatch):
    command = [sys.executable, "-c", "import os, time; time.sleep(30) if os.environ['RANK'] == '0' else os._exit(3)"]
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _command, **options: start(command, **options))
    assert local_ranks.run_verb([], 2) == 3


def test_ranks_end_with_the_verb(tmp_path):
    """Terminated, it leaves none behind."""
    rank = f"import os, pathlib, time; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(60)"
    program = (
        "import subprocess, sys; from dlrm_dist import local_ranks; start = subprocess.Popen\n"
        f"subprocess.Popen = lambda words, **options: start([sys.executable, '-c', {rank!r}], **options)\n"
        "local_ranks.run_verb([], 2)"
    )
    verb = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    end = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    ranks = [int(path.name) for path in tmp_path.iterdir() if re.fullmatch("[0-9]+", path.name)]
    verb.send_signal(signal.SIGTERM)
    assert verb.wait(10) == 128 + signal.SIGTERM and len(ranks) == 2
    for each in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)

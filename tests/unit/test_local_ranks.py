"""Ranks that a verb starts."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from dlrm_dist import local_ranks
from tests.helpers import ROOT


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

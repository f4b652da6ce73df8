"""An agent that hangs in a call to its store, as one that is cut off does: it ends, or begins again, all the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from torch.distributed import TCPStore

from dlrm_dist import tries
from launch import elastic, rendezvous, store
from launch.rendezvous import Endpoint
from tests.helpers import ROOT

AGENT = """
import ctypes, signal, subprocess, sys
from launch import watchdog
from launch.rendezvous import Endpoint
watchdog._LOST_S, watchdog._MARGIN_S = 1.5, 0.5
signal.signal(signal.SIGTERM, lambda *_: None)
print("begun", flush=True)
child = subprocess.Popen(["sleep", "60"]) if "child" in sys.argv else None
with watchdog.Watchdog(Endpoint("127.0.0.1", int(sys.argv[1])), "job", may_return="return" in sys.argv):
    print("watched", child and child.pid, flush=True)
    libc = ctypes.CDLL(None)
    while True:
        libc.pause()
"""
"""Its main thread runs no Python code any more: handlers of signals do not come to it."""


@contextmanager
def agent(port, *words):
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(port), *words],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.fixture
def silent_port():
    """Takes connections and never answers, as far as a program can tell from a host that was cut off."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_an_agent_without_its_store_ends_where_no_restart_is_wanted(silent_port):
    with agent(silent_port) as process:
        assert process.wait(30) == 1
        assert "has not answered for" in process.stdout.read()


def test_it_begins_again_where_restarts_are_wanted(silent_port):
    with agent(silent_port, "return") as process:
        said = [process.stdout.readline().strip() for _ in range(4)]
    assert said[0] == said[3] == "begun" and "to join the job again" in said[2]


def test_a_request_to_stop_ends_it_and_its_ranks(silent_port):
    """With a rank left it would wait on: the rank may train without the store."""
    with agent(silent_port, "child") as process:
        assert process.stdout.readline() == "begun\n"
        child = int(process.stdout.readline().split()[1])
        time.sleep(2.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75
    assert subprocess.run(["ps", "-o", "state=", "-p", str(child)], capture_output=True).stdout.strip() in (b"", b"Z")


def run_store(*words):
    command = [sys.executable, "-m", "launch.store", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_store_ends_when_nobody_needs_it():
    done = run_store("--port", "0", "--idle-s", "1")
    assert done.returncode == 0 and done.stdout.startswith("rendezvous store on port ")


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [("port", value, "0 (any free one) to 65535") for value in ("99999", "-1", "x")]
    + [("idle-s", value, "seconds above 0, or inf") for value in ("-5", "0", "nan", "x")],
)
def test_a_store_refuses_what_is_no_port_and_no_time(capsys, option, value, allowed):
    with pytest.raises(SystemExit) as stop:
        store.main([f"--{option}={value}"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: argument --{option}: {value!r}; allowed: {allowed}\n"


def test_a_store_refuses_a_taken_port(silent_port):
    done = run_store("--port", str(silent_port))
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: --port {silent_port}: ")


def test_an_agent_says_why_its_store_cannot_be_started(silent_port):
    """What listens there is no store: it is not waited for without end."""
    problem = rendezvous.await_store(Endpoint("127.0.0.1", silent_port), "job", patience_s=600)
    assert problem.startswith(f"cannot be started: --port {silent_port}: ")


def test_a_store_that_was_started_anew_is_told_what_it_knew(monkeypatch):
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv(rendezvous.NOTES, json.dumps({"run": "mine", "exit code": "2"}))
    endpoint = Endpoint("localhost", server.port)
    assert rendezvous.await_store(endpoint, "job", patience_s=5) == ""
    assert tries.noted(server, "job") == {"run": "mine", "exit code": "2"}
    assert rendezvous.verdict(endpoint, "job") == 2 and rendezvous.verdict(endpoint, "another") is None


@pytest.mark.parametrize("script", [["-m", "launch.train"], [str(ROOT / "launch/train.py")]])
def test_ranks_get_the_time_to_save_that_their_config_says(monkeypatch, script):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(elastic.run, "run", lambda _: None)
    assert elastic.main([*script, "--runtime.grace_s", "77"]) == 0
    assert os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "77"
    assert elastic.main([*script, "--runtime.grace_s", "88"]) == 0
    assert os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "77", "the environment's stays"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rdzv-conf", "join_timeout"], "--rdzv-conf is 'join_timeout'; allowed: key=value,..."),
        (["--rdzv-conf", "join_timeout=1.5"], "--rdzv-conf is 'join_timeout=1.5'; allowed: key=value,..."),
        (["--nnodes", "1", "--rdzv-conf", "last_call_timeout=0"], "--rdzv-conf is 'last_call_timeout=0'; allowed: "),
        (["--nnodes", "2:1"], "--nnodes is '2:1'; allowed: "),
        (["--nnodes", "0"], "--nnodes is '0'; allowed: "),
        (["--nproc-per-node", "0"], "--nproc-per-node is '0'; allowed: "),
        (["--max-restarts", "-1"], "--max-restarts is -1; allowed: 0 or more"),
        (["--rdzv-endpoint", "h:99999"], "--rdzv-endpoint: "),
        (["--nnodes", "x"], "--nnodes is 'x'; allowed: hosts, such as 2, or LEAST:MOST"),
        (["--nnodes", "1:2:3"], "--nnodes is '1:2:3'; allowed: "),
        (["--nproc-per-node", "many"], "--nproc-per-node is 'many'; allowed: "),
    ],
)
def test_mistakes_of_an_agent_are_one_line(capsys, words, said):
    given = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29500", *words, "x.py"]
    assert elastic.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1

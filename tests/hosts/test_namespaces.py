"""The hosts that the other tests here stand on: two addresses, two names, a link that can be cut and throttled."""

import sys
import time

import pytest

from benchmarks.hosts import namespaces

LISTEN = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 5000))
print("listening", flush=True)
while True:
    other, where = listener.accept()
    count = sum(len(part) for part in iter(lambda: other.recv(1 << 16), b""))
    print("got", count, "from", where[0], "on", socket.gethostname(), flush=True)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=2) as other:
    other.sendall(bytes(int(sys.argv[2])))
"""


def send(host, to, count):
    return host.start(sys.executable, "-c", SEND, to, str(count)).wait(20)


def test_hosts_have_their_own_addresses_and_names_and_a_link_to_cut(two_hosts):
    alpha, beta = two_hosts
    listener = beta.start(sys.executable, "-c", LISTEN)
    listener.wait_for("listening", 10)
    assert send(alpha, "beta", 10) == 0
    assert listener.wait_for(r"got 10 from (\S+) on beta", 5).group(1) == alpha.address != beta.address
    beta.cut()
    assert send(alpha, "beta", 11) != 0
    beta.restore()
    assert send(alpha, "beta", 12) == 0
    listener.wait_for("got 12", 5)
    assert "got 11" not in listener.output


def test_a_throttled_link_carries_so_much_a_second(two_hosts):
    """2 MB at 16 Mbit/s take a second, less what the burst of 256 kB lets pass at once."""
    alpha, beta = two_hosts
    listener = beta.start(sys.executable, "-c", LISTEN)
    listener.wait_for("listening", 10)
    alpha.limit("16mbit")
    started = time.monotonic()
    assert send(alpha, beta.address, 2_000_000) == 0
    listener.wait_for("got 2000000", 10)
    assert time.monotonic() - started > 0.7


def test_a_killed_host_runs_nothing_and_nothing_is_left(two_hosts):
    alpha, beta = two_hosts
    program = alpha.start("sh", "-c", "sleep 99 & sleep 98")
    other = beta.start("sleep", "99")
    while len(alpha.pids()) < 2:
        time.sleep(0.02)
    alpha.kill()
    assert alpha.pids() == [] and program.wait(1) == -9
    assert other.is_running


def test_a_failure_prints_what_the_programs_said_and_leaves_no_host(tmp_path, _can_make_hosts, capsys):
    with pytest.raises(ZeroDivisionError), namespaces.two_hosts(tmp_path) as (alpha, _):
        alpha.start("sh", "-c", "echo said; sleep 99").wait_for("said", 10)
        _ = 1 / 0
    assert "program 0 of alpha, the end of its output:\nsaid" in capsys.readouterr().out
    assert alpha.namespace not in namespaces._run("ip", "netns", "list")

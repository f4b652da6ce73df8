"""Runs a program as Python would: `client.py [-u] (PROGRAM | -m MODULE | -c CODE) [ARGUMENT ...]`.

The server's socket lies beside this file, which gets its first line, of `#!`, when it is put there.
"""

import contextlib
import marshal
import os
import signal
import socket
import struct
import sys
from pathlib import Path

RELAYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main():
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(Path(__file__).with_name("socket")))
        if "PYTHONPATH" in os.environ or not _is_neighbour(server):
            os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
        signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED)
        request = marshal.dumps((sys.argv[1:], dict(os.environ), str(Path.cwd())))
        socket.send_fds(server, [len(request).to_bytes(4)], [0, 1, 2])
        server.sendall(request)
        pid = _answer(server)
        for number in RELAYED:
            signal.signal(number, lambda number, _: _relay(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RELAYED)
        code = _answer(server)
    if code < 0:  # ended by a signal
        with contextlib.suppress(OSError):  # SIGKILL has no other
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _is_neighbour(server):
    """Whether the server sees the same network and host name: a fork of it would keep its own."""
    pid, _, _ = struct.unpack("3i", server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    spaces = [[Path("/proc", str(each), "ns", name).readlink() for name in ("net", "uts")] for each in (pid, "self")]
    return spaces[0] == spaces[1]


def _answer(server):
    answer = server.recv(4)
    if not answer:
        raise ConnectionError("the server has ended")
    return int.from_bytes(answer, signed=True)


def _relay(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())

"""Imports what programs need, then forks for each of them: `server.py SOCKET`; ends with its standard input."""

import contextlib
import gc
import importlib
import marshal
import os
import runpy
import selectors
import signal
import socket
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

IMPORTED = ("dlrm_dist.train", "dlrm_dist.verify.worker", "dlrm_dist.evaluate_verb", "torch.distributed.run")
_SIZE = 4
"""Bytes of a number on the socket."""


@dataclass(frozen=True)
class Request:
    """A program to run: what follows `python`, its environment and folder, and its standard files."""

    words: list[str]
    environment: dict[str, str]
    folder: str
    files: list[int]


@dataclass(frozen=True)
class Child:
    """A program that runs: its process, a descriptor of that, and the client that waits for it."""

    pid: int
    descriptor: int
    client: socket.socket


def serve(listener: socket.socket) -> Request:
    """Forks for each request; returns it in the fork."""
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    events.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in events.select():
            if key.fileobj is sys.stdin:
                sys.exit()
            elif key.fileobj is listener:
                client, _ = listener.accept()
                request = _received(client)
                if request is not None and _forked(request, client, events):
                    return request
            elif key.fileobj is not key.data.client:
                _ended(key.data, events)
            elif key.data.client.fileno() >= 0:  # killed, for it never writes again; and the program has not ended too
                events.unregister(key.data.client)
                os.kill(key.data.pid, signal.SIGKILL)


def _received(client: socket.socket) -> Request | None:
    """What a client wants; None if it went away, to a Python of its own."""
    size, files, _, _ = socket.recv_fds(client, _SIZE, 3)
    if not size:
        client.close()
        return None
    with client.makefile("rb") as stream:
        return Request(*marshal.loads(stream.read(int.from_bytes(size))), files)


def _forked(request: Request, client: socket.socket, events: selectors.BaseSelector) -> bool:
    """Whether this is the fork."""
    pid = os.fork()
    if pid:
        for file in request.files:
            os.close(file)
        child = Child(pid, os.pidfd_open(pid), client)
        events.register(child.descriptor, selectors.EVENT_READ, child)
        events.register(client, selectors.EVENT_READ, child)
        _tell(client, pid)
        return False
    os.setsid()  # its signals come from the client alone
    for number, file in enumerate(request.files):
        os.dup2(file, number)
    client.close()
    for key in list(events.get_map().values()):
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.close()
        elif key.fileobj is not sys.stdin:
            os.close(key.fd)
    events.close()
    return True


def _ended(child: Child, events: selectors.BaseSelector) -> None:
    _, status = os.waitpid(child.pid, 0)
    events.unregister(child.descriptor)
    os.close(child.descriptor)
    if child.client in events.get_map():
        events.unregister(child.client)
        _tell(child.client, os.waitstatus_to_exitcode(status))
    child.client.close()


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # it may have been killed in this moment
        client.sendall(number.to_bytes(_SIZE, signed=True))


def run(request: Request) -> None:
    """Be the Python that was asked for."""
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    words = list(request.words)
    while words[0] == "-u":
        del words[0]
        sys.stdout.reconfigure(write_through=True)  # type: ignore[attr-defined]
    if words[0] == "-m":
        sys.path[0] = request.folder
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = str(Path(words[0]).resolve().parent)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def main(path: str) -> None:
    """Serve; each fork goes on as its program."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("listening", flush=True)  # clients wait while it imports
    with warnings.catch_warnings(action="ignore"):
        for name in IMPORTED:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    run(serve(listener))


if __name__ == "__main__":
    main(sys.argv[1])

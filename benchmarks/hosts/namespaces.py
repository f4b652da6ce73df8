"""Hosts as Linux network namespaces: each its own address, host name and link, on one machine, as root.

Every host hangs by a veth pair on a bridge that lies in a namespace of its own, so that a third one (a store's, say)
is one name more, a cut link cuts a host off from all others, and tests side by side share nothing. Programs see the
others' names in `/etc/hosts` (`ip netns exec` puts the files of `/etc/netns/NAME` there).
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_ETC = Path("/etc/netns")
_MARK = "dlrm"
_numbers = itertools.count(1)
_TAIL = 3000


class Program:
    """A program on a host, with its output in a file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], output: Path) -> None:
        self.name, self._process, self._output = name, process, output

    @property
    def pid(self) -> int:
        """Of the program itself: the commands that started it have become it."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has written so far, to stdout and stderr."""
        return self._output.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Its exit code; kills it when time is up.

        Raises:
            TimeoutError: it did not end.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise TimeoutError(f"{self.name} did not end within {timeout} s") from None

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        """The first match in its output, as soon as there is one.

        Raises:
            TimeoutError: there is none in time, or it ended without one.
        """
        end = time.monotonic() + timeout
        while True:
            running = self.is_running  # asked first: what it wrote before its end is still to be read
            found = re.search(pattern, self.output)
            if found:
                return found
            if not running or time.monotonic() > end:
                state = f"within {timeout} s" if running else "before its end"
                raise TimeoutError(f"{self.name} did not say {pattern!r} {state}")
            time.sleep(0.05)


class Host:
    """One host: `address`, `name` (its host name), and what can happen to it."""

    def __init__(self, name: str, address: str, namespace: str, switch: str, port: str, folder: Path) -> None:
        self.name, self.address, self.namespace = name, address, namespace
        self.programs: list[Program] = []
        self._switch, self._port, self._folder = switch, port, folder

    def start(self, *words: str | Path, cwd: Path | None = None, **environment: str) -> Program:
        """Start a program on this host."""
        number = len(self.programs)
        output = self._folder / f"{self.name}.{number}.log"
        shell = f'hostname {self.name}; exec "$@"'
        command = ["ip", "netns", "exec", self.namespace, "unshare", "-u", "sh", "-c", shell, "sh", *map(str, words)]
        kept = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**kept, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.programs.append(Program(f"program {number} of {self.name}", process, output))
        return self.programs[-1]

    def limit(self, rate: str) -> None:
        """Let no more than `rate` (such as "100mbit") through the host's link, each way."""
        for namespace, device in ((self.namespace, "eth0"), (self._switch, self._port)):
            rule = ["tbf", "rate", rate, "burst", "256kb", "latency", "100ms"]
            _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", *rule)

    def unlimit(self) -> None:
        """Take `limit` back."""
        for namespace, device in ((self.namespace, "eth0"), (self._switch, self._port)):
            _run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")

    def cut(self) -> None:
        """Cut the host's link; packets vanish, as with a pulled cable of the switch: no connection is told."""
        _run("ip", "-n", self._switch, "link", "set", self._port, "down")

    def restore(self) -> None:
        """Mend the link."""
        _run("ip", "-n", self._switch, "link", "set", self._port, "up")

    def pids(self) -> list[int]:
        """All processes on this host."""
        return [int(word) for word in _run("ip", "netns", "pids", self.namespace).split()]

    def kill(self) -> None:
        """SIGKILL to every process on this host until there is none: a host that lost its power but not its link."""
        end = time.monotonic() + 10
        while (found := self.pids()) and time.monotonic() < end:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for program in self.programs:
                program.is_running  # noqa: B018  reaps it
            time.sleep(0.02)


def why_not() -> str:
    """Why this machine cannot make hosts; empty where it can."""
    missing = [name for name in ("ip", "tc", "unshare", "hostname") if shutil.which(name) is None]
    if missing:
        return f"no program {', '.join(missing)} (Debian: iproute2, util-linux, hostname)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{_MARK}{os.getpid()}-probe"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "add", "br0", "type", "bridge")
        _run("ip", "netns", "exec", name, "unshare", "-u", "true")
    except OSError as error:
        return f"no network namespaces here: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False, timeout=20)
    return ""


@contextmanager
def hosts(folder: Path, names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts of these names, whose programs' output goes to `folder`.

    All that runs on them is killed in the end. When an exception leaves, the end of each program's output is printed.
    """
    _sweep()
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{_MARK}{os.getpid()}-{next(_numbers)}"
    switch, network = f"{stem}-switch", f"10.77.{os.getpid() % 254 + 1}"
    made = [
        Host(name, f"{network}.{place}", f"{stem}-{name}", switch, f"port{place}", folder)
        for place, name in enumerate(names, 1)
    ]
    try:
        _wire(made, switch)
        yield made
    except BaseException:
        for program in itertools.chain.from_iterable(host.programs for host in made):
            print(f"---- {program.name}, the end of its output:\n{program.output[-_TAIL:]}")
        raise
    finally:
        for host in made:
            _remove(host)
        subprocess.run(["ip", "netns", "del", switch], capture_output=True, check=False, timeout=20)


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Hosts `alpha` and `beta`."""
    with hosts(folder, ("alpha", "beta")) as (first, second):
        yield first, second


def _wire(made: Sequence[Host], switch: str) -> None:
    _run("ip", "netns", "add", switch)
    _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
    _run("ip", "-n", switch, "link", "set", "br0", "up")
    table = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in made)
    for host in made:
        inside, port = host.namespace, host._port
        (_ETC / inside).mkdir(parents=True, exist_ok=True)
        (_ETC / inside / "hosts").write_text(table)
        _run("ip", "netns", "add", inside)
        _run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", inside)
        _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        _run("ip", "-n", inside, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", inside, "link", "set", device, "up")


def _remove(host: Host) -> None:
    with suppress(OSError):
        host.kill()
    for program in host.programs:
        with suppress(TimeoutError):
            program.wait(5)
    subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False, timeout=20)
    shutil.rmtree(_ETC / host.namespace, ignore_errors=True)


def _sweep() -> None:
    """Remove what a killed test run has left: namespaces bear the process's number."""
    for line in _run("ip", "netns", "list").splitlines():
        found = re.match(rf"{_MARK}(\d+)-", line)
        if found and not Path("/proc", found.group(1)).exists():
            name = line.split()[0]
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, timeout=20).stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False, timeout=20)
            shutil.rmtree(_ETC / name, ignore_errors=True)


def _run(*words: str) -> str:
    """The output of one of the machine's commands.

    Raises:
        OSError: it failed.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout

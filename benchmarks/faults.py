"""What a run over two hosts does when something breaks: does it end or come back as promised, and how soon?

`python -m benchmarks.faults [--times 5] [--cases 'cut link,slow rank'] [--out FILE.md]`, as root on Linux with
iproute2: the hosts are network namespaces (benchmarks/hosts/namespaces.py), two ranks on each, and the rendezvous store
is on a third. Each case trains for real, breaks one thing, and checks what is promised of it. Each run must report
every step once, go on from no older checkpoint than the newest before the break, and have the losses of an undisturbed
one, in which its rows are. Exit code 1 if a promise was broken.
"""

import argparse
import math
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.hosts import namespaces
from benchmarks.hosts.jobs import Job, pid_of, resumed_after, slowed, start_store
from benchmarks.hosts.namespaces import Host, Program
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks

ROWS, BATCH_SIZE, STEPS, TIMEOUT_S = 2003, 100, 80, 10
BREAKS_AT = 12
PATIENCE_S = 240.0
"""A case that takes longer for one thing is broken: on two busy cores a start of four ranks took up to 60 s."""
SAVED_EVERY = 5
TOLD_WITHIN_S = 3 * TIMEOUT_S
"""Every rank and the agent that is cut off: what a collective may take, and as long again for each to be sure."""
CLOSE = 5e-3
"""Losses on fewer ranks, whose sums are added in another order; those of batches with other rows are farther off."""


@dataclass(frozen=True)
class Place:
    """Three hosts, and a job that two of them run."""

    first: Host
    second: Host
    job: Job
    agents: list[Program]
    saved: list[int]
    """The newest checkpoint's step when something broke, if something did that ends ranks."""

    def breaks(self) -> float:
        """Note what is saved; returns the time."""
        self.saved.append(self.job.last_saved())
        return time.monotonic()

    def lines(self) -> list[dict[str, Any]]:
        """Reports of the training so far."""
        return self.job.lines()


@dataclass(frozen=True)
class Case:
    """What breaks, and what is promised: `run` breaks it, checks, and gives seconds by name."""

    promise: str
    run: Callable[[Place], dict[str, float]]
    nnodes: str = "2"
    ends: bool = True
    """By itself after STEPS steps with the losses of an undisturbed run; else it is asked to stop."""


def nothing(place: Place) -> dict[str, float]:
    return {}


def kill_rank(place: Place) -> dict[str, float]:
    began = place.breaks()
    os.kill(pid_of(place.second, 3), signal.SIGKILL)
    goes_on = _goes_on(place.job, began)
    said = "".join(agent.output for agent in place.agents)  # by whichever rank missed it first
    if not re.search(r"error: rank 3 (on \w+ )?went away.*; waited for in ", said):
        raise AssertionError("nobody named the rank that was killed")
    return {"trains on after": goes_on}


def kill_host(place: Place, victim: str = "second") -> dict[str, float]:
    lost: Host = getattr(place, victim)
    step, began = place.job.last_step(), place.breaks()
    lost.kill()
    ranks, survivor = ("2, 3", place.agents[0]) if lost is place.second else ("0, 1", place.agents[1])
    survivor.wait_for(rf"error: ranks {ranks} on \w+ .*; waited for in ", PATIENCE_S)
    place.job.await_ranks(2, PATIENCE_S)
    place.job.await_step(step + 1, PATIENCE_S)
    goes_on = time.monotonic() - began
    began = time.monotonic()
    place.agents.append(place.job.start(lost))
    step = place.job.await_ranks(4, PATIENCE_S)
    place.job.await_step(step + 1, PATIENCE_S)
    return {"trains on after": goes_on, "with the host again after": time.monotonic() - began}


def kill_first_host(place: Place) -> dict[str, float]:
    return kill_host(place, "first")


def cut_link(place: Place) -> dict[str, float]:
    began = place.breaks()
    place.second.cut()
    here, there = place.agents
    here.wait_for(r"error: ranks 2, 3 on \w+ did not answer .* waited for in the ", PATIENCE_S)
    for rank in (2, 3):
        there.wait_for(rf"error: rank {rank} on \w+ reaches neither ranks 0, 1 .* it waited in the ", PATIENCE_S)
    there.wait_for("waiting for it, to join the job again", PATIENCE_S)
    told = time.monotonic() - began
    if told > TOLD_WITHIN_S:
        raise AssertionError(f"all told after {told:.0f} s")
    began = time.monotonic()
    place.second.restore()
    return {"all told after": told, "trains on, mended, after": _goes_on(place.job, began)}


def slow_link(place: Place) -> dict[str, float]:
    before = _step_ms(place)
    step = place.job.last_step()
    place.second.limit("10mbit")
    place.job.await_step(step + 50, PATIENCE_S)
    after = statistics.median(line["step_ms"] for line in place.lines() if line["step"] > step + 1)
    if any("straggler" in line for line in place.lines()):
        raise AssertionError("a rank was called slow")
    return {"ms a step before": before, "ms a step, throttled": after}


def slow_rank(place: Place) -> dict[str, float]:
    began = time.monotonic()
    with slowed(pid_of(place.second, 3), 0.7):
        place.agents[0].wait_for(r"warning: rank 3 on \w+ needs \S+ x the median step", PATIENCE_S)
        return {"named after": time.monotonic() - began}


CASES = {
    "nothing": Case("the losses to compare with", nothing),
    "kill rank": Case("all ranks start anew; losses as undisturbed, bit for bit", kill_rank),
    "kill host": Case(
        "goes on with two of four ranks, takes the host back; losses as undisturbed",
        kill_host,
        "1:2",
        ends=False,
    ),
    "kill first host": Case("the same, though it had global rank 0", kill_first_host, "1:2", ends=False),
    "cut link": Case("every rank says who is out of reach; goes on when mended, losses bit for bit", cut_link),
    "slow link": Case("goes on, slower; no rank is called slow; losses bit for bit", slow_link),
    "slow rank": Case("the rank is named with its host; losses bit for bit", slow_rank),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--cases", default=",".join(name for name in CASES if name != "nothing"))
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    reason = namespaces.why_not()
    if reason:
        parser.error(reason)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the hosts are taken down on the way out
    names = options.cases.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"--cases: no case {min(unknown)!r}; allowed: {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as folder:
        data = _clicks(Path(folder))
        undisturbed = _tried(Path(folder, "nothing"), data, CASES["nothing"], None)
        found = {name: list[tuple[str, dict[str, float]]]() for name in names}
        for time_of in range(options.times):
            for name in names:
                outcome = _tried(Path(folder, f"{name} {time_of}"), data, CASES[name], undisturbed[2])
                found[name].append(outcome[:2])
                figures = ", ".join(f"{what} {value:.1f}" for what, value in outcome[1].items())
                print(f"{name} {time_of + 1}: {outcome[0] or 'as promised'}; {figures}", flush=True)
    rows = [_row(name, found[name]) for name in names]
    _write(rows, options.out)
    return 0 if all(not broken for outcomes in found.values() for broken, _ in outcomes) else 1


def _tried(
    folder: Path, data: Path, case: Case, losses: list[float] | None
) -> tuple[str, dict[str, float], list[float]]:
    """What was broken of the promise (empty: nothing), the seconds, the losses."""
    try:
        with _place(folder, data, case) as place:
            figures = case.run(place)
            if not case.ends:
                for agent in place.agents:
                    if agent.is_running:
                        agent.send(signal.SIGTERM)
            _check(place, case, losses)
            return "", figures, [line["loss"] for line in place.lines()]
    except (AssertionError, LookupError, TimeoutError, OSError) as error:
        if losses is None:
            raise
        return f"BROKEN: {error!r}", {}, []


@contextmanager
def _place(folder: Path, data: Path, case: Case) -> Iterator[Place]:
    with namespaces.hosts(folder / "output", ("alpha", "beta", "gamma")) as (first, second, third):
        start_store(third)
        words = ["--train.batch_size", BATCH_SIZE, "--train.epochs", 9999, "--train.log_every", 1]
        words += ["--train.max_steps", STEPS if case.ends else 100_000, "--checkpoint.every", SAVED_EVERY]
        words += ["--runtime.timeout_s", TIMEOUT_S]
        job = Job(folder, data, third.address, case.nnodes, *words)
        agents = [job.start(host) for host in (first, second)]
        job.await_step(BREAKS_AT, PATIENCE_S)
        if "step" not in agents[0].output:  # agents take their ranks in the order of their hosts' names
            raise AssertionError("global rank 0 is not on the first host")
        try:
            yield Place(first, second, job, agents, [])
        except AssertionError:
            for agent in agents:
                print("\n".join(["", *agent.output.splitlines()[-40:]]))
            raise


def _check(place: Place, case: Case, losses: list[float] | None) -> None:
    """How it ended, and what it trained on."""
    codes = [agent.wait(PATIENCE_S) for agent in place.agents]
    expected = 0 if case.ends else 75
    if [code for code in codes if code not in (expected, -signal.SIGKILL)]:
        raise AssertionError(f"exit codes {codes}")
    steps = [line["step"] for line in place.lines()]
    if steps != list(range(1, len(steps) + 1)) or (case.ends and len(steps) != STEPS):
        raise AssertionError(f"steps {steps}")
    if [line["samples"] for line in place.lines()] != [_rows_after(step) for step in steps]:
        raise AssertionError("the samples are not those of the steps")
    resumed = resumed_after(place.agents)
    if place.saved and (not resumed or min(resumed) < place.saved[0]):
        raise AssertionError(f"went on after steps {resumed}, where step {place.saved[0]} had been saved")
    if losses is not None:
        pairs = list(zip([line["loss"] for line in place.lines()], losses, strict=case.ends))
        off = max(abs(mine - undisturbed) for mine, undisturbed in pairs)
        if off > (0 if case.ends else CLOSE):
            raise AssertionError(f"losses are off by {off:.1e} from those of an undisturbed run")


def _rows_after(step: int) -> int:
    epochs, rest = divmod(step, math.ceil(ROWS / BATCH_SIZE))
    return epochs * ROWS + rest * BATCH_SIZE


def _goes_on(job: Job, began: float) -> float:
    """Seconds until it has trained beyond what was reported when something broke."""
    step = job.last_step()
    job.await_step(step + 2, PATIENCE_S)  # one that was under way may still be reported
    return time.monotonic() - began


def _step_ms(place: Place) -> float:
    return statistics.median(line["step_ms"] for line in place.lines()[1:])


def _clicks(folder: Path) -> Path:
    write_clicks(folder / "train.tsv", ROWS, seed=0)
    write_clicks(folder / "valid.tsv", 200, seed=1)
    options = PrepareOptions("kaggle", valid=(folder / "valid.tsv",), lanes=12, group_rows=16)
    prepare([folder / "train.tsv"], folder / "data", options)
    return folder / "data"


def _row(name: str, outcomes: list[tuple[str, dict[str, float]]]) -> dict[str, Any]:
    kept = [figures for broken, figures in outcomes if not broken]
    told = [
        f"{what} {statistics.median(each[what] for each in kept):.1f} "
        f"({min(each[what] for each in kept):.1f} to {max(each[what] for each in kept):.1f})"
        for what in (kept[0] if kept else {})
    ]
    return {
        "what breaks": name,
        "promise": CASES[name].promise,
        "kept": f"{len(kept)} of {len(outcomes)}",
        "seconds, median (least to most)": "; ".join(told),
    }


def _write(rows: list[dict[str, Any]], out: Path | None) -> None:
    where = harness.environment()
    machine = where["machine"]
    text = (
        f"{harness.table(rows)}\n\n`{where['command']}` at {where['commit']}, {machine['cores']} cores of a shared "
        f"{machine['processor']}, torch {where['versions']['torch']}.\n"
    )
    print(text)
    if out:
        out.write_text(text)


if __name__ == "__main__":
    sys.exit(main())

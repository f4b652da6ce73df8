"""Kills of a rank at random moments: does the run come back by itself, and end with the weights of an undisturbed one?

`python benchmarks/soak.py [--kills 50] [--ranks 1,2,4] [--seed 0] [--data DATASET]` starts a run for each kill through
torchx with --max_retries, sends SIGKILL to one rank, chosen at random, at a random moment (a fifth of them while the
ranks start, the others at a random step), waits for its end, and compares all weights and optimizer state of the last
checkpoint bit for bit with a run of as many ranks that nothing disturbed. Exit code 1 if one did not.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dlrm_dist.checkpoint.source import Sharded
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks

ROOT = Path(__file__).resolve().parents[1]
STEPS = 120
MODEL = ("--model.embedding_dim", "8", "--model.bottom_mlp", "16,8", "--model.top_mlp", "16,1")


@dataclass(frozen=True)
class Outcome:
    """What became of one kill."""

    ranks: int
    moment: str
    seconds: float
    came_back: bool
    is_bit_equal: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or clicks(Path(folder))
        outcomes = soak(
            data, Path(folder, "runs"), options.kills, [int(n) for n in options.ranks.split(",")], options.seed
        )
    good = [outcome for outcome in outcomes if outcome.came_back and outcome.is_bit_equal]
    print(
        f"{len(outcomes)} kills: {sum(each.came_back for each in outcomes)} came back by themselves, "
        f"{len(good)} with bit-equal weights"
    )
    return 0 if len(good) == len(outcomes) else 1


def clicks(folder: Path) -> Path:
    """A small dataset of planted clicks."""
    write_clicks(folder / "train.tsv", 6000, seed=0)
    prepare(
        [folder / "train.tsv"], folder / "data", PrepareOptions("kaggle", split="0.9,0.1,0", lanes=12, group_rows=64)
    )
    return folder / "data"


def soak(data: Path, runs: Path, kills: int, ranks: list[int], seed: int) -> list[Outcome]:
    """Kill a run for each of `kills`, over the numbers of ranks in turn."""
    chance = random.Random(seed)
    whole = {}
    outcomes = []
    for number in range(kills):
        count = ranks[number % len(ranks)]
        if count not in whole:
            whole[count] = f"whole{count}"
            with launched(data, runs, count, whole[count]) as running:
                finished = running.wait(timeout=300)
            assert finished == 0, f"the undisturbed run of {count} ranks ended with {finished}"
        outcome = kill_one(data, runs, count, f"killed{number}", whole[count], chance)
        print(number + 1, outcome, flush=True)
        outcomes.append(outcome)
    return outcomes


@contextmanager
def launched(data: Path, runs: Path, ranks: int, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run through torchx, which may be started anew three times; asked to stop if it still runs at the end."""
    words = ["--data.path", data, "--run.folder", runs, "--run.name", name, "--train.max_steps", STEPS, *MODEL]
    words += ["--train.batch_size", 100, "--train.epochs", 99, "--train.log_every", 1, "--runtime.timeout_s", 60]
    words += ["--checkpoint.every", 7]
    torchx = Path(sys.executable).with_name("torchx")
    line = [torchx, "run", "-s", "local_cwd", "dist.ddp", "-j", f"1x{ranks}", "--max_retries", 3, "launch/train.py"]
    runs.mkdir(exist_ok=True)
    with (runs / f"{name}.log").open("w") as log:
        running = subprocess.Popen([str(word) for word in [*line, *words]], cwd=ROOT, stdout=log, stderr=log)
    with running:
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(timeout=60)
            except subprocess.TimeoutExpired:
                running.kill()


def kill_one(data: Path, runs: Path, ranks: int, name: str, whole: str, chance: random.Random) -> Outcome:
    """Start a run, kill a rank of it, and wait for its end."""
    started = time.monotonic()
    victim = chance.randrange(ranks)
    with launched(data, runs, ranks, name) as running:
        moment, found = _kill(running, runs / name, victim, chance)
        try:
            code = running.wait(timeout=300)
        except subprocess.TimeoutExpired:
            code = -1
    came_back = code == 0 and found
    if not came_back:
        print((runs / f"{name}.log").read_text()[-5000:])
    equal = came_back and states_are_equal(runs / name, runs / whole)
    return Outcome(ranks, moment, time.monotonic() - started, came_back, equal)


def _kill(running: subprocess.Popen[bytes], run: Path, victim: int, chance: random.Random) -> tuple[str, bool]:
    """Kill a rank at a random moment; says which, and whether there was such a rank."""
    if chance.random() < 0.2:
        wait = chance.uniform(0, 6)
        moment = f"rank {victim} {wait:.1f} s after its start"
        found = _until(lambda: rank_of(run.name, victim), running)
        time.sleep(wait)
    else:
        step = chance.randrange(1, STEPS - 5)
        moment = f"rank {victim} behind step {step}"
        found = _until(lambda: rank_of(run.name, victim) if _steps(run) >= step else None, running)
        time.sleep(chance.uniform(0, 0.05))
    try:
        os.kill(found or 0, signal.SIGKILL) if found else None
    except ProcessLookupError:
        moment += " (it had ended)"
    return moment, bool(found)


def states_are_equal(run: Path, other: Path) -> bool:
    """Whether two runs' last checkpoints hold the same weights and optimizer state, bit for bit."""
    a, b = (Sharded(each / "checkpoints" / f"step_{STEPS:09d}") for each in (run, other))
    return a.sizes == b.sizes and all(torch.equal(a.read(key), b.read(key)) for key in a.sizes)


def rank_of(name: str, rank: int) -> int | None:
    """The process of a rank of a run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((folder / each).read_bytes().split(b"\0") for each in ("cmdline", "environ"))
        except OSError:
            continue
        if b"launch/train.py" in words and name.encode() in words and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    return None


def _steps(run: Path) -> int:
    """The step of the last report."""
    try:
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


def _until(what: Callable[[], int | None], running: subprocess.Popen[bytes]) -> int | None:
    while running.poll() is None:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    return None


if __name__ == "__main__":
    sys.exit(main())

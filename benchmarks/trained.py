"""Runs of launch/train.py for benchmarks that compare what was learned: started, waited for, read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class DivergedError(Exception):
    """The loss of a run was not finite."""


def train(folder: Path, ranks: int, *words: str) -> Path:
    """One run on so many ranks of this machine, with these words for launch/train.py; returns its folder.

    Raises:
        DivergedError: the run has diverged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"run{len(list(folder.iterdir()))}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = [str(ROOT / "launch/train.py"), "--run.folder", str(folder), "--run.name", name]
    done = subprocess.run([*launch, *script, *words], capture_output=True, text=True)
    if "the run has diverged" in done.stderr:
        raise DivergedError
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        print(said[0] if said else done.stderr[-3000:], file=sys.stderr)
        sys.exit(2 if said else 1)
    return folder / name


def result_of(run: Path) -> dict[str, Any]:
    """What is in a run's result.json."""
    return json.loads((run / "result.json").read_text())


def reports_of(run: Path, split: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl for a split."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]

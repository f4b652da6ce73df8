"""The public torchrec_dlrm trainer, for `step.py`: `step_peer.py FOLDER OUT.json THREADS WARM_UP STEPS --flag value …`.

`FOLDER` is a clone of github.com/facebookresearch/dlrm, whose files stay as they are: its `main` runs, with its random
data in memory, and the clock is read behind each of its training steps.
"""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from harness import peak_mib

_NEEDED = ("torchmetrics", "pyre_extensions", "tqdm")


def main(folder: str, out: str, threads: str, warm_up: str, steps: str, *words: str) -> None:
    prepare_imports(Path(folder, "torchrec_dlrm"))
    torch.set_num_threads(int(threads))
    import dlrm_main

    ends: list[tuple[float, float]] = []  # time and CPU-seconds
    pipeline = dlrm_main.TrainPipelineSparseDist

    class Timed(pipeline):  # type: ignore[misc, valid-type]
        """Notes when each step ends."""

        def progress(self, *arguments: Any) -> Any:
            result = super().progress(*arguments)
            if len(ends) in (int(warm_up) - 1, int(steps) - 1) and torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append((time.perf_counter(), time.process_time()))
            return result

    dlrm_main.TrainPipelineSparseDist = Timed
    dlrm_main.main(list(words))
    first, last = ends[int(warm_up) - 1], ends[int(steps) - 1]  # what follows is its evaluation
    rows = (int(steps) - int(warm_up)) * int(words[words.index("--batch_size") + 1])
    if os.environ["RANK"] == "0":
        found = {
            "samples_per_s": rows * int(os.environ["WORLD_SIZE"]) / (last[0] - first[0]),
            "samples_per_cpu_s": rows / (last[1] - first[1]),
            "peak_MiB": peak_mib(),
        }
        Path(out).write_text(json.dumps(found))


def prepare_imports(folder: Path) -> None:
    """Let `dlrm_main` be imported from its folder; it needs iopath for files alone, and random data has none."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing or not (folder / "dlrm_main.py").exists():
        sys.exit(f"{folder}: {'needs ' + ', '.join(missing) if missing else 'no dlrm_main.py there'}")
    if importlib.util.find_spec("iopath") is None:
        for name in ("iopath", "iopath.common", "iopath.common.file_io"):
            sys.modules[name] = ModuleType(name)
        sys.modules["iopath.common.file_io"].PathManager = object  # type: ignore[attr-defined]
        sys.modules["iopath.common.file_io"].PathManagerFactory = object  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])

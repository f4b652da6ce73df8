"""Ranks that order rows between them: each takes its own part, in runs of few rows; rank 0 writes the areas."""

import json
import sys
from pathlib import Path

import numpy as np

from dlrm_dist.ranking.exact import ExactAreas
from dlrm_dist.ranking.grouped import GroupedAuc
from dlrm_dist.ranking.scratch import scratch
from dlrm_dist.ranking.sorted_runs import SortedRuns
from dlrm_dist.runtime import session
from dlrm_dist.sections import RuntimeSection


def main(folder):
    rows = np.load(folder / "rows.npz")
    found = {}
    with session(RuntimeSection(device="cpu", timeout_s=60, threads=1)) as here:
        for name in ("spread", "few", "tied"):
            mine = np.arange(here.global_rank, 200 if name == "few" else 9000, here.world_size)
            if name == "few" and here.global_rank == 1:
                mine = mine[:0]
            logits, labels, weights = (rows[key][mine] for key in ("logits", "labels", "weights"))
            logits = 0 * logits if name == "tied" else logits
            with scratch(folder, here) as place:
                exact = ExactAreas(SortedRuns(place, "all", here, 500), here)
                grouped = GroupedAuc(SortedRuns(place, "grouped", here, 500), here)
                for part in np.array_split(np.arange(len(mine)), 7):
                    exact.add(logits[part], labels[part], weights[part])
                    grouped.add(rows["groups"][mine][part], logits[part], labels[part], weights[part])
                found[name] = [*exact.compute(), *grouped.compute()]
        if here.is_main:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Trains recipes for a few steps, one after another in one process: `recipes_program.py OUT.json DATA ONE_SPACE FILE…`.

Their data and tables are small ones: all else is the recipe's. A recipe whose model has one table for all trains on the
dataset whose ids are of one space.
"""

import json
import sys
from pathlib import Path

from dlrm_dist import config as configs
from dlrm_dist import train
from dlrm_dist.data.schema import read_info

STEPS = 3


def words(recipe: Path, data: Path, one_space: Path, runs: Path) -> list[str]:
    """The recipe for `dlrm_dist.config.load`, scaled down."""
    config = configs.load(["--config", str(recipe)])
    path = one_space if config.model.name == "paddlerec" else data
    rows = ",".join(str(each.rows) for each in read_info(path).categories)
    found = ["--config", str(recipe), "--data.path", str(path), "--model.num_embeddings", rows]
    found += ["--train.max_steps", str(STEPS), "--train.batch_size", "20", "--runtime.device", "cpu"]
    found += ["--eval.split", "valid", "--eval.every", "0", "--run.folder", str(runs), "--run.name", recipe.stem]
    found += ["--schedule.warmup_steps", str(min(1, config.schedule.warmup_steps))]
    found += ["--schedule.start", "1"] if config.schedule.start else []
    found += ["--schedule.steps", "2"] if config.schedule.steps else []
    if config.model.multi_hot_sizes:
        found += ["--model.multi_hot_sizes", ",".join(["1"] * len(read_info(path).categories))]
    return found


def main(out: str, data: str, one_space: str, *recipes: str) -> None:
    """Leave each recipe's result, by its file."""
    results = {}
    for number, recipe in enumerate(recipes):
        runs = Path(out).parent / f"runs{number}"
        results[recipe] = train.main(configs.load(words(Path(recipe), Path(data), Path(one_space), runs)))
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])

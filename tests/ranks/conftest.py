from pathlib import Path

import pytest

from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,990 training rows in 12 lanes: three stripes, the last short; tables from a handful to hundreds of rows."""
    folder = tmp_path_factory.mktemp("small")
    write_clicks(folder / "train.tsv", 1990, seed=0)
    write_clicks(folder / "valid.tsv", 333, seed=1)
    options = PrepareOptions("kaggle", valid=(folder / "valid.tsv",), min_count=2, lanes=12, group_rows=64)
    prepare([folder / "train.tsv"], folder / "data", options)
    return folder / "data"

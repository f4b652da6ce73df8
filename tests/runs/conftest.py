from pathlib import Path

import pytest

from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks

TRAIN_ROWS, VALID_ROWS = 1003, 200
"""Neither divides by the batches of the tests, nor by 3 ranks."""


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted clicks in 12 lanes: six stripes of training rows, the last short; two of validation rows."""
    folder = tmp_path_factory.mktemp("clicks")
    write_clicks(folder / "train.tsv", TRAIN_ROWS, seed=0)
    write_clicks(folder / "valid.tsv", VALID_ROWS, seed=1)
    options = PrepareOptions("kaggle", valid=(folder / "valid.tsv",), lanes=12, group_rows=16)
    prepare([folder / "train.tsv"], folder / "data", options)
    return folder / "data"

"""A table's initial weights depend on nothing but seed, table, row and column."""

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from dlrm_dist import shard

ROWS = 2 * shard._INIT_BLOCK_ROWS + 1000
CONFIG = EmbeddingBagConfig(
    name="t", embedding_dim=8, num_embeddings=ROWS, feature_names=["f"], weight_init_min=-0.5, weight_init_max=0.25
)


def filled(first_row, column, rows, columns, seed=3, number=1):
    part = torch.empty(rows, columns)
    shard._fill(part, first_row, column, CONFIG, seed, number)
    return part


@pytest.fixture(scope="module")
def whole():
    return filled(0, 0, ROWS, 8)


@pytest.mark.parametrize("first_row", [0, 5, shard._INIT_BLOCK_ROWS - 3, shard._INIT_BLOCK_ROWS, ROWS - 7])
@pytest.mark.parametrize(("column", "columns"), [(0, 8), (4, 4)])
def test_a_part_is_the_same_as_in_the_whole(whole, first_row, column, columns):
    rows = min(shard._INIT_BLOCK_ROWS + 9, ROWS - first_row)
    part = filled(first_row, column, rows, columns)
    assert torch.equal(part, whole[first_row : first_row + rows, column : column + columns])


def test_blocks_tables_and_seeds_differ(whole):
    block = shard._INIT_BLOCK_ROWS
    assert not torch.equal(whole[:1000], whole[block : block + 1000])
    assert not torch.equal(whole[:1000], whole[2 * block :])
    assert not torch.equal(whole[:1000], filled(0, 0, 1000, 8, seed=4))
    assert not torch.equal(whole[:1000], filled(0, 0, 1000, 8, number=2))


def test_the_range(whole):
    assert -0.5 <= whole.min() < -0.499 < 0.249 < whole.max() <= 0.25
    assert abs(whole.mean() + 0.125) < 1e-3

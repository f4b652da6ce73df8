"""Managed collisions on two ranks: each id has a row of its own, and training is that of a vocabulary."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.schema import RAW_IDS, read_info
from dlrm_dist.data.synthetic import write_clicks
from dlrm_dist.models.managed import mixed
from dlrm_dist.verify.ranks import run_ranks
from tests.ranks.managed_program import MANAGED, START, STEPS

PROGRAM = Path(__file__).with_name("managed_program.py")
RANKS = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same rows with raw ids of three categories, and with vocabularies of all values."""
    folder = tmp_path_factory.mktemp("managed")
    write_clicks(folder / "train.tsv", 1990, seed=0)
    write_clicks(folder / "valid.tsv", 333, seed=1)
    made = {}
    for name, raw in (("raw", MANAGED), ("vocabulary", ())):
        options = PrepareOptions("kaggle", valid=(folder / "valid.tsv",), min_count=1, raw=raw, lanes=12, group_rows=64)
        prepare([folder / "train.tsv"], folder / name, options)
        made[name] = folder / name
    return made


@pytest.fixture(scope="module")
def ranks(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    run_ranks(PROGRAM, RANKS, str(folders["raw"]), str(folders["vocabulary"]), f"{out}/", timeout=100)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def rows_by_id(ranks, run, table):
    """The row of each (mixed) id, over all ranks; no id and no row is there twice."""
    ids, rows = (
        torch.cat([rank[run]["maps"][table][name] for rank in ranks])
        for name in ("_mch_sorted_raw_ids", "_mch_remapped_ids_mapping")
    )
    used = ids != RAW_IDS
    found = dict(zip(ids[used].tolist(), rows[used].tolist(), strict=True))
    assert len(found) == int(used.sum()) and len(set(found.values())) == len(found)
    return found


def raw_ids(folder, column):
    """The ids of the training rows that the ranks have seen, in any order."""
    info = read_info(folder)
    return [id_ for part in info.splits["train"].parts for id_ in pq.read_table(folder / part)[column].to_pylist()]


def test_the_losses_are_those_of_a_vocabulary(ranks):
    """Ids get rows before they are looked up, as they are counted at each step; the rest is one to one.

    The tolerance is the order of the sums: tables are cut in other places.
    """
    for rank in ranks:
        assert len(rank["managed"]["losses"]) == STEPS
        torch.testing.assert_close(
            torch.tensor(rank["managed"]["losses"]), torch.tensor(rank["vocabulary"]["losses"]), rtol=0, atol=1e-6
        )
    losses = ranks[0]["managed"]["losses"]
    assert max(losses) - min(losses) > 0.02


@pytest.mark.parametrize("column", MANAGED)
def test_each_ids_row_is_that_of_its_value_in_the_vocabulary(ranks, folders, column):
    found = rows_by_id(ranks, "managed", f"t_{column}")
    values = pq.read_table(folders["vocabulary"] / "vocabulary" / f"{column}.parquet")["value"].to_pylist()
    numbers = torch.tensor([1 << 32 if value is None else value for value in values])
    managed, plain = (
        next(value for key, value in ranks[0][run]["final"].items() if key.endswith(f"t_{column}.weight"))
        for run in ("managed", "vocabulary")
    )
    moved = 0
    for place, id_ in enumerate(mixed(numbers).tolist()):
        if id_ in found:
            torch.testing.assert_close(managed[found[id_]], plain[place + 1], rtol=0, atol=1e-5)
            moved += bool((plain[place + 1] - START).abs().max() > 0.01)
        else:
            assert (plain[place + 1] == START).all()  # only in batches that were not trained on
    assert moved > 10
    rest = torch.ones(len(managed), dtype=torch.bool)
    rest[list(found.values())] = False
    assert (managed[rest] == START).all()  # the shared rows too: no id was without its own


def test_the_frequent_ids_keep_their_rows_and_rare_ones_share(ranks, folders):
    for column in MANAGED:
        found = rows_by_id(ranks, "tight", f"t_{column}")
        counts = Counter(raw_ids(folders["raw"], column))
        assert len(counts) > 16 >= 14 >= len(found)
        assert {7, 15} & set(found.values()) == set()  # the last rows of the ranks' parts
        top = torch.tensor([id_ for id_, _ in counts.most_common(4)])
        assert set(mixed(top).tolist()) <= set(found)


def test_scoring_changes_no_map(ranks):
    for rank in ranks:
        for run in ("managed", "tight"):
            for table, before in rank[run]["maps"].items():
                after = rank[run]["scored"][table]
                assert before.keys() == after.keys()
                assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(("kind", "moments"), [("sgd", 0), ("adagrad", 1), ("rowwise_adagrad", 1)])
def test_a_row_that_gets_another_id_begins_anew(ranks, kind, moments):
    """Weights are drawn as at first, and moments are 0; other rows and tables stay as they are."""
    for rank in ranks:
        found = rank[f"anew-{kind}"]
        assert len(found["state"]) == moments
        for value, start in [(found["weight"], START), *((each, 0.0) for each in found["state"])]:
            assert (value[[0, 2]] == start).all()
            assert (value[[1, *range(3, len(value))]] == 7.0).all()

"""Prepare: how rows are divided among train, valid and test."""

import pytest

from dlrm_dist.data import text
from dlrm_dist.data.prepare import prepare
from tests.unit.kaggle_rows import by_number, check_values, expected_ids, options, random_rows, read, write


@pytest.mark.parametrize(
    ("rows", "split", "sizes"),
    [
        (70, "kaggle", (60, 5, 5)),
        (76, "kaggle", (66, 5, 5)),
        (77, "kaggle", (66, 5, 6)),
        (14, "kaggle", (12, 1, 1)),
        (10, "0.8,0.1,0.1", (8, 1, 1)),
        (11, "1/3, 1/3, 1/3", (3, 4, 4)),
        (10, "0.7,0,0.3", (7, 0, 3)),
        (10, "1,0,0", (10, 0, 0)),
        (10, "none", (10, 0, 0)),
    ],
)
def test_split_sizes_in_file_order(tmp_path, rows, split, sizes):
    write(tmp_path / "log", random_rows(rows))
    info = prepare([tmp_path / "log"], tmp_path / "out", options(split=split))
    expected = {name: size for name, size in zip(("train", "valid", "test"), sizes, strict=True) if size}
    assert {name: part.rows for name, part in info.splits.items()} == expected
    numbers = [number for name in info.splits for number in by_number(read(tmp_path / "out", name))]
    assert numbers == list(range(rows))


def test_the_last_day_is_halved_and_days_come_by_number(tmp_path):
    rows = random_rows(35)
    (tmp_path / "days").mkdir()
    for day, (start, stop) in {2: (0, 10), 10: (20, 35), 9: (10, 20)}.items():
        write(tmp_path / "days" / f"day_{day}", rows[start:stop])
    info = prepare([tmp_path / "days"], tmp_path / "out", options(split="day"))
    assert {name: part.rows for name, part in info.splits.items()} == {"train": 20, "valid": 8, "test": 7}
    numbers = [number for name in info.splits for number in by_number(read(tmp_path / "out", name))]
    assert numbers == list(range(35))


@pytest.mark.parametrize("ids", ["hash", "vocabulary"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("split", "shares"), [("bars_x1", (0.7, 0.2, 0.1)), ("bars_x4", (0.8, 0.1, 0.1))])
def test_random_splits_are_disjoint_complete_and_of_their_shares(tmp_path, monkeypatch, split, shares, shuffle, ids):
    rows = random_rows(500)
    for number in range(0, 500, 50):
        rows[number][2] = "bad"
    write(tmp_path / "log", rows)
    left = {number: row for number, row in enumerate(rows) if number % 50}
    found = []
    for number, size in enumerate((8 << 20, 5000)):
        monkeypatch.setattr(text, "BLOCK_BYTES", size)
        out = tmp_path / f"out{number}"
        how = options(split=split, shuffle=shuffle, ids=ids, hash_rows=1000, on_bad_row="skip", seed=3, min_count=1)
        info = prepare([tmp_path / "log"], out, how)
        assert {path.name for path in out.iterdir()} <= {"train", "valid", "test", "vocabulary", "dataset.json"}
        found.append({name: list(by_number(read(out, name))) for name in ("train", "valid", "test")})
        train = [left[row] for row in found[-1]["train"]]
        for name, share in zip(found[-1], shares, strict=True):
            assert info.splits[name].rows == len(found[-1][name]) == pytest.approx(500 * share, abs=45)
            expected = [left[row] for row in found[-1][name]]
            if ids == "vocabulary":
                check_values(expected, read(out, name), [column for _, column in expected_ids(expected, train, 1)])
    assert found[0] == found[1]
    assert sorted(row for rows in found[0].values() for row in rows) == sorted(left)
    assert found[0]["valid"] == sorted(found[0]["valid"])


def test_another_seed_draws_other_splits(tmp_path):
    write(tmp_path / "log", random_rows(300))
    tests = []
    for number, seed in enumerate((1, 1, 2)):
        prepare([tmp_path / "log"], tmp_path / f"out{number}", options(split="bars_x4", seed=seed))
        tests.append(set(by_number(read(tmp_path / f"out{number}", "test"))))
    assert tests[0] == tests[1] != tests[2]

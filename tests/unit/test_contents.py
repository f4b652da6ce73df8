import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm_dist import cli
from dlrm_dist.data import id_counts
from dlrm_dist.data.contents import contents
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic_dataset import write_dataset
from dlrm_dist.errors import UserError
from tests.unit.test_prepare import NAMES, options, random_rows, write


@pytest.mark.parametrize("ids", ["hash", "vocabulary"])
def test_figures_follow_the_obvious_definition(tmp_path, ids):
    rows = random_rows(200)
    write(tmp_path / "log", rows)
    how = options(ids=ids, hash_rows=50, min_count=1, split="0.6,0.2,0.2", dense="none")
    info = prepare([tmp_path / "log"], tmp_path / "data", how)
    found = contents(tmp_path / "data")
    for name, part in (("train", rows[:120]), ("valid", rows[120:160]), ("test", rows[160:])):
        clicks = sum(int(row[0]) for row in part)
        assert found["splits"][name] == {"rows": len(part), "clicks": clicks, "label_rate": clicks / len(part)}
    for place, name in enumerate(NAMES[1:14], 1):
        values = [int(row[place] or 0) for row in rows]
        zeros = values.count(0) / 200
        expected = {"min": min(values), "mean": sum(values) / 200, "max": max(values)}
        expected |= {"zeros": zeros, "missing_at_most": zeros}
        assert found["dense"][name] == pytest.approx(expected)
    for place, (name, category) in enumerate(zip(NAMES[14:], info.categories, strict=True), 14):
        texts = [row[place] for row in rows]
        known = {row[place] for row in rows[:120]}
        if ids == "hash":
            counts = Counter((int(text, 16) if text else 2**32) % 50 for text in texts)
        else:
            counts = Counter(text if text in known else None for text in texts)
        column = found["categories"][name]
        assert (column["ids"], column["seen"]) == (category.rows, len(counts))
        assert column["rare"] == (None if ids == "hash" else counts[None] / 200)
        assert column["missing"] == (counts[""] / 200 if ids == "vocabulary" and "" in known else None)
        shared = counts[2**32 % 50] if ids == "hash" else counts["" if "" in known else None]
        assert column["missing_at_most"] == shared / 200
        for top in (1, 10, 100):
            assert column["top"][str(top)] == pytest.approx(sum(n for _, n in counts.most_common(top)) / 200)


def test_the_verb_prints_each_column_and_json(tmp_path, capsys):
    write(tmp_path / "log", random_rows(50))
    prepare([tmp_path / "log"], tmp_path / "data", options())
    assert cli.main(["inspect", str(tmp_path / "data")]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert words == ["train", "total", "bad", "dense", *NAMES[1:14], "category", *NAMES[14:]]
    assert cli.main(["inspect", str(tmp_path / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == contents(tmp_path / "data")


@pytest.mark.parametrize("seen_ids", [20, 5000])
def test_ids_of_a_table_beyond_memory_are_counted_in_parts(monkeypatch, seen_ids):
    monkeypatch.setattr(id_counts, "_MERGE_IDS", 50)
    monkeypatch.setattr(id_counts, "SEEN_IDS", seen_ids)
    table, rng = 1 << 40, np.random.default_rng(0)
    pieces = [rng.zipf(1.2, 300).astype(np.int64) % table for _ in range(10)] + [np.zeros(7, np.int64)]
    counts = Counter(np.concatenate(pieces).tolist())
    found = id_counts.count_ids(lambda: pieces, table, 100, {0, 3, table - 1})
    assert (found.total, found.seen) == (3007, len(counts))
    assert found.top == [count for _, count in counts.most_common(100)]
    assert found.of == {0: counts[0], 3: counts[3], table - 1: counts[table - 1]}


def test_a_hash_of_more_rows_than_memory_is_inspected(tmp_path):
    rows = random_rows(60)
    write(tmp_path / "log", rows)
    prepare([tmp_path / "log"], tmp_path / "data", options(ids="hash", hash_rows=(1 << 40) - 1))
    found = contents(tmp_path / "data")["categories"]
    for place, name in enumerate(NAMES[14:], 14):
        texts = Counter(row[place] for row in rows)
        assert (found[name]["ids"], found[name]["seen"]) == ((1 << 40) - 1, len(texts))
        assert found[name]["missing"] == found[name]["missing_at_most"] == texts[""] / 60  # no value has its id


def test_missing_values_of_slot_text_and_planted_clicks(tmp_path):
    line = "click:1 " + "dense_feature:0.5 " * 13 + "1:5 2:0\n"
    (tmp_path / "log").write_text(line * 3)
    prepare([tmp_path / "log"], tmp_path / "slot", options(format="slot"))
    found = contents(tmp_path / "slot")
    assert [found["categories"][name]["missing_at_most"] for name in ("C1", "C2", "C3")] == [0, 1, 1]
    assert found["categories"]["C3"]["missing"] is None and found["dense"]["I1"]["missing_at_most"] is None
    write_dataset(tmp_path / "planted", 2000, split="none")
    found = contents(tmp_path / "planted")["categories"]
    assert 0.01 < found["C1"]["missing"] < 0.03 and found["C10"]["missing"] > 0.8


def test_bad_rows_weights_and_what_is_unknown_are_told(tmp_path, capsys):
    (tmp_path / "schema.toml").write_text(
        'label = "y"\nweight = "w"\ndense = ["x"]\n'
        '[categories]\na = { ids = "keep", rows = 9 }\nb = { ids = "hash", rows = 5 }\nc = {}\nd = {}\n'
    )
    columns = {"y": [0, 1, 2, 1], "w": [1.0, 4.0, 1.0, 1.0], "x": [None, 3.0, 1.0, 0.0], "a": [1, 2, 3, 4]}
    columns |= {"b": [None, 7, 7, 7], "c": [None, 7, 7, 8], "d": [[1], [2, None], [], None]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    how = options(format="parquet", schema=tmp_path / "schema.toml", dense="log3", on_bad_row="skip")
    prepare([tmp_path / "log.parquet"], tmp_path / "data", how)
    found = contents(tmp_path / "data")
    assert (found["rows"], found["num_bad_rows"], found["bad_rows"]) == (3, 1, {"label": 1})
    assert found["weight"] == {"column": "w", "min": 1, "mean": 2, "max": 4}
    assert found["dense"]["x"]["missing_at_most"] == 2 / 3 and found["dense"]["x"]["zeros"] == 0
    gaps = {name: (column["missing"], column["missing_at_most"]) for name, column in found["categories"].items()}
    assert gaps == {"a": (0, 0), "b": (None, 1 / 3), "c": (None, 1), "d": (None, None)}
    assert cli.main(["inspect", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"total +3 rows\nbad rows left out or mended: 1 \(label 1\)\n", said)
    assert re.search(r"weight +min +mean +max\nw +1 +2 +4\n", said)
    for name, share in (("x", "<=66.7%"), ("a", "0.0%"), ("b", "<=33.3%"), ("d", "unknown")):
        assert re.search(rf"^{name} .* {share}", said, re.MULTILINE)


def test_a_damaged_part_is_named(tmp_path):
    write(tmp_path / "log", random_rows(50))
    info = prepare([tmp_path / "log"], tmp_path / "data", options())
    (tmp_path / "data" / info.splits["train"].parts[0]).write_bytes(b"no Parquet")
    with pytest.raises(UserError, match=r"part-00000\.parquet: column I1 cannot be read"):
        contents(tmp_path / "data")


def test_a_folder_of_neither_kind_is_named(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "neither a dataset nor a checkpoint here; allowed: " in capsys.readouterr().err

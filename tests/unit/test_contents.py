import json
from collections import Counter

import pytest

from dlrm_dist import cli
from dlrm_dist.data.contents import contents
from dlrm_dist.data.prepare import prepare
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
        expected = {"min": min(values), "mean": sum(values) / 200, "max": max(values), "zeros": values.count(0) / 200}
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
        for top in (1, 10, 100):
            assert column["top"][str(top)] == pytest.approx(sum(n for _, n in counts.most_common(top)) / 200)


def test_the_verb_prints_each_column_and_json(tmp_path, capsys):
    write(tmp_path / "log", random_rows(50))
    prepare([tmp_path / "log"], tmp_path / "data", options())
    assert cli.main(["inspect", str(tmp_path / "data")]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert words == ["train", "dense", *NAMES[1:14], "category", *NAMES[14:]]
    assert cli.main(["inspect", str(tmp_path / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == contents(tmp_path / "data")


def test_a_damaged_part_is_named(tmp_path):
    write(tmp_path / "log", random_rows(50))
    info = prepare([tmp_path / "log"], tmp_path / "data", options())
    (tmp_path / "data" / info.splits["train"].parts[0]).write_bytes(b"no Parquet")
    with pytest.raises(UserError, match=r"part-00000\.parquet: column I1 cannot be read"):
        contents(tmp_path / "data")


def test_a_folder_of_neither_kind_is_named(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "neither a dataset nor a checkpoint here; allowed: " in capsys.readouterr().err

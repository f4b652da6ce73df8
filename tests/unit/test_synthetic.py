import hashlib
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from scipy.sparse import hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from dlrm_dist.cli import main
from dlrm_dist.data import synthetic
from dlrm_dist.data.law import CATEGORIES, NAMED_CARDINALITIES, Law
from dlrm_dist.data.schema import read_info
from dlrm_dist.data.synthetic import INTEGERS, best_auc, oracle_logits, write_clicks
from dlrm_dist.data.synthetic_dataset import write_dataset
from dlrm_dist.data.writer import Layout
from dlrm_dist.errors import UserError

ROWS = 200_000
TRAIN = 160_000


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("clicks") / "clicks.tsv"
    return path, write_clicks(path, ROWS, seed=3)


@pytest.fixture(scope="module")
def table(written):
    names = ["label", *INTEGERS, *CATEGORIES]
    types = dict.fromkeys(CATEGORIES, pa.string())
    return csv.read_csv(
        written[0],
        csv.ReadOptions(column_names=names),
        csv.ParseOptions(delimiter="\t"),
        csv.ConvertOptions(column_types=types),
    )


def test_equal_arguments_give_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 700)
    for name in ("a.tsv", "b.tsv", "c.tsv.gz", "d.tsv.gz"):
        write_clicks(tmp_path / name, 1500, seed=5)
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()
    assert (tmp_path / "c.tsv.gz").read_bytes() == (tmp_path / "d.tsv.gz").read_bytes()


def test_another_seed_gives_other_rows_and_another_effects_seed_only_other_labels(tmp_path):
    def lines(name, **seeds):
        write_clicks(tmp_path / name, 1000, **seeds)
        return [line.split("\t", 1) for line in (tmp_path / name).read_text().splitlines()]

    base, other_rows, other_effects = lines("a"), lines("b", seed=1), lines("c", effects_seed=1)
    assert not {rest for _, rest in base} & {rest for _, rest in other_rows}
    assert [rest for _, rest in base] == [rest for _, rest in other_effects]
    assert [label for label, _ in base] != [label for label, _ in other_effects]


def test_lines_are_criteo_lines(tmp_path):
    write_clicks(tmp_path / "a.tsv", 5000)
    raw = (tmp_path / "a.tsv").read_bytes()
    assert b'"' not in raw and b"\r" not in raw and raw.endswith(b"\n")
    fields = [line.split("\t") for line in raw.decode().splitlines()]
    assert len(fields) == 5000 and {len(line) for line in fields} == {40}
    assert {line[0] for line in fields} == {"0", "1"}
    integers = [value for line in fields for value in line[1:14]]
    categories = [value for line in fields for value in line[14:]]
    assert all(re.fullmatch(r"(-?\d+)?", value) for value in integers)
    assert all(re.fullmatch(r"([0-9a-f]{8})?", value) for value in categories)
    assert "" in integers and "" in categories
    assert min(int(value) for value in integers if value) == -3


def test_gzip_holds_the_same_lines(tmp_path):
    plain, packed = write_clicks(tmp_path / "a.tsv", 3000), write_clicks(tmp_path / "a.tsv.gz", 3000)
    assert plain == packed
    with pa.input_stream(tmp_path / "a.tsv.gz") as file:
        assert file.read() == (tmp_path / "a.tsv").read_bytes()
    assert (tmp_path / "a.tsv.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_hex_names_are_distinct_within_and_across_categories():
    sizes = Law().cardinalities
    columns = [synthetic._hex_names(c, np.arange(n, dtype=np.int32)) for c, n in enumerate(sizes)]
    names = [name for column in columns for name in column.to_pylist()]
    assert len(set(names)) == len(names) == sum(sizes)
    digits = np.array([list(name) for name in names[-1000:]])
    assert all(len(set(column)) == 16 for column in digits.T)  # they look hashed: every digit takes every value


def test_ids_follow_zipfs_law_and_counts_have_long_tails():
    integers, ids = synthetic.draw_values(np.random.default_rng(0), ROWS, Law())
    for c in (4, 9, 17):
        n = Law().cardinalities[c]
        seen = ids[c][ids[c] >= 0]
        expected = np.log1p(1 / np.arange(1, 11)) / np.log(n + 1)
        share = np.bincount(seen, minlength=n)[:10] / len(seen)
        np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / len(seen)))
        assert ids[c].min() == -1 and 0.9 * n < seen.max() < n
    values = integers[10][~np.isnan(integers[10])]
    assert values.mean() > 1.5 * np.median(values)


def test_report_matches_the_file_and_the_oracle_read_back(written, table):
    path, report = written
    labels = table["label"].to_numpy()
    logits = oracle_logits(table)
    assert report.rows == len(labels) == ROWS
    assert report.click_rate == pytest.approx(labels.mean(), abs=1e-9)
    assert 0.25 < report.click_rate < 0.27 and 0.80 < report.best_auc < 0.84
    assert report.best_auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-5)
    assert best_auc(path) == report.best_auc
    assert best_auc(path, rows=slice(TRAIN, None)) == pytest.approx(
        roc_auc_score(labels[TRAIN:], logits[TRAIN:]), abs=1e-5
    )
    assert best_auc(path, rows=slice(1234, 150_001)) == pytest.approx(
        roc_auc_score(labels[1234:150_001], logits[1234:150_001]), abs=1e-5
    )
    assert best_auc(path, effects_seed=1) == pytest.approx(0.5, abs=0.06)  # another model knows nothing of these
    assert np.isnan(best_auc(path, rows=slice(ROWS, None)))


def test_logits_are_calibrated(table):
    labels, logits = table["label"].to_numpy(), oracle_logits(table).astype(float)
    order = np.argsort(logits).reshape(10, -1)
    observed, expected = labels[order].mean(axis=1), (1 / (1 + np.exp(-logits[order]))).mean(axis=1)
    np.testing.assert_allclose(observed, expected, atol=5 * np.sqrt(0.25 / order.shape[1]))


@pytest.mark.parametrize("effects_seed", range(5))
def test_any_effects_leave_a_gap_that_only_pairs_can_close(effects_seed):
    model = synthetic.PlantedModel(effects_seed)
    rng = np.random.default_rng(9)
    integers, ids = synthetic.draw_values(rng, ROWS, Law())
    logits = model.logits(integers, ids)
    clicks = rng.random(ROWS) < 1 / (1 + np.exp(-logits))
    pairs = {pair: effects[ids[pair[0]], ids[pair[1]]] for pair, effects in model.pairs.items()}
    for (a, b), effects in pairs.items():  # no single id foretells its pair's effect
        for c in (a, b):
            count = np.bincount(ids[c] + 1)[1:]
            mean = np.bincount(ids[c] + 1, effects)[1:] / count
            assert np.all(np.abs(mean) < 6 * effects.std() * 2 / np.sqrt(count))
    best, additive = roc_auc_score(clicks, logits), roc_auc_score(clicks, logits - sum(pairs.values()))
    assert 0.25 < clicks.mean() < 0.27 and 0.80 < best < 0.84
    assert additive < best - 0.05


def test_what_simple_models_reach(written, table):
    columns = {name: table[name].to_numpy() for name in INTEGERS}
    edges = {name: np.unique(np.nanquantile(values, np.linspace(0, 1, 21)[1:-1])) for name, values in columns.items()}
    binned = np.stack([np.where(np.isnan(v), -1, np.digitize(v, edges[k])) for k, v in columns.items()], 1).astype(int)
    ids = np.stack([table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in CATEGORIES], 1)
    crossed = np.stack([ids[:, a] * 1000 + ids[:, b] for a, b in Law().pairs], axis=1)
    dense, sparse, cross = (
        OneHotEncoder(min_frequency=least, handle_unknown="infrequent_if_exist", dtype=np.float32).fit_transform(x)
        for x, least in ((binned, 5), (ids, 5), (crossed, 5))
    )
    labels = table["label"].to_numpy()

    def reached(features):
        model = LogisticRegression(C=0.1, tol=1e-3, max_iter=300).fit(features[:TRAIN], labels[:TRAIN])
        return roc_auc_score(labels[TRAIN:], model.decision_function(features[TRAIN:]))

    best = best_auc(written[0], rows=slice(TRAIN, None))
    only_dense, everything = reached(dense), reached(hstack([dense, sparse], format="csr"))
    with_pairs = reached(hstack([dense, sparse, cross], format="csr"))
    print(f"best {best:.4f}, dense {only_dense:.4f}, everything {everything:.4f}, with pairs {with_pairs:.4f}")
    assert 0.55 < only_dense < best - 0.05
    assert only_dense + 0.05 < everything < best - 0.03
    assert best - with_pairs < (best - everything) / 2  # what is missing is the planted pairs


@pytest.mark.parametrize("arguments", [{"rows": 0}, {"rows": -5}, {"rows": 10, "seed": -1}])
def test_arguments_out_of_range_write_nothing(tmp_path, arguments):
    with pytest.raises(UserError, match=r"rows >= 1") as raised:
        write_clicks(tmp_path / "a.tsv", **arguments)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["missing/a.tsv", "folder", "file/a.tsv"])
def test_unwritable_output_is_refused_and_leaves_nothing(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written") as raised:
        write_clicks(tmp_path / name, 10)
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), UserError)],
)
def test_a_failure_midway_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, failure, seen):
    path = tmp_path / "a.tsv"
    path.write_text("old")
    write_csv, calls = csv.write_csv, []

    def fail_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise failure
        write_csv(*arguments)

    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 100)
    monkeypatch.setattr(synthetic.csv, "write_csv", fail_second)
    with pytest.raises(seen):
        write_clicks(path, 300)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tsv"] and path.read_text() == "old"
    monkeypatch.undo()
    write_clicks(path, 300)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tsv"] and len(path.read_text().splitlines()) == 300


def test_files_that_are_no_planted_clicks_are_refused(tmp_path):
    foreign, broken = tmp_path / "foreign.tsv", tmp_path / "broken.tsv"
    foreign.write_text("\t".join(["1", *["5"] * 13, *["68fd1e64"] * 26]) + "\n")
    broken.write_text("1\t2\n")
    for path, message in (
        (foreign, "not planted"),
        (broken, "cannot be read"),
        (tmp_path / "no.tsv", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            best_auc(path)
        assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_the_bytes_of_the_default_clicks_do_not_change(tmp_path):
    """The best AUC of the default dataset, which documents tell, is that of these very rows."""
    write_clicks(tmp_path / "a.tsv", 300_000, seed=3)
    found = hashlib.sha256((tmp_path / "a.tsv").read_bytes()).hexdigest()
    assert found == "1c8028e134f07504a768e4e49c08712638eff11f818ef2fb7dc39eacc5f4dc88"


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_do_not_depend_on_the_threads(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 700)
    write_clicks(tmp_path / "a.tsv", 5000)
    monkeypatch.setattr(synthetic, "_THREADS", threads)
    write_clicks(tmp_path / "b.tsv", 5000)
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.4])
def test_ids_follow_the_power_law_asked(exponent):
    law = Law((1000, 1, 2, *[40] * 23), exponent)
    ids = law.draw(np.random.default_rng(0), 400_000)
    for c in (0, 1, 2, 25):
        shares, seen = law.shares(c), ids[c][ids[c] >= 0]
        assert shares.sum() == pytest.approx(1) and 0 <= seen.min() <= seen.max() < law.cardinalities[c]
        found = np.bincount(seen, minlength=law.cardinalities[c]) / len(seen)
        np.testing.assert_allclose(found, shares, atol=5 * np.sqrt(shares.max() / len(seen)) + 1e-12)
        assert np.mean(ids[c] < 0) == pytest.approx(0.02, abs=0.002)
    edges = np.arange(1, 1002.0)  # the law as it is meant: the mass of x^-s between k + 1 and k + 2
    mass = np.diff(np.log(edges) if exponent == 1 else edges ** (1 - exponent) / (1 - exponent))
    np.testing.assert_allclose(law.shares(0), mass / mass.sum())


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0])
def test_the_largest_cardinality_is_drawn_from_as_a_whole(exponent):
    law = Law((2**31 - 1,) * 26, exponent)
    ids = law.draw(np.random.default_rng(0), 20_000)
    seen = ids[ids >= 0].astype(float)
    assert ids.min() == -1 and 1.9e9 < ids.max() < 2**31 - 1 and np.mean(ids < 0) == pytest.approx(0.02, abs=0.002)
    middle = (
        np.exp(np.log(2.0**31) / 2)
        if exponent == 1
        else (1 + (2.0 ** (31 * (1 - exponent)) - 1) / 2) ** (1 / (1 - exponent))
    )
    assert np.mean(seen < middle - 1) == pytest.approx(0.5, abs=0.005)
    assert len(law.shares(0, 100)) == 100  # the others would take 16 GB
    assert np.isfinite(synthetic.PlantedModel(0, law).bias)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.4])
def test_the_first_shares_are_those_of_all(exponent):
    law = Law((1000, *[40] * 25), exponent)
    np.testing.assert_allclose(law.shares(0, 10), law.shares(0)[:10], rtol=1e-12)
    assert np.array_equal(law.shares(1, 50), law.shares(1))


def test_large_ids_are_reached_and_the_signal_lies_where_it_can_be_learnt():
    law = Law(NAMED_CARDINALITIES["mlperf"], 0.0)
    ids = law.draw(np.random.default_rng(0), 20_000)
    assert np.median(ids[0]) == pytest.approx(2e7, rel=0.05) and len(np.unique(ids[0] % 2)) == 2
    assert max(law.cardinalities[c] for c in law.carriers) < 2500
    names = synthetic._hex_names(0, np.array([39_999_999, -1, 0], np.int32)).to_pylist()
    assert names[1] is None and len({*names}) == 3 and len(names[0]) == 8


def test_only_the_most_frequent_ids_of_a_large_carrier_have_an_effect():
    model = synthetic.PlantedModel(0, Law((10_000_000,) * 26, 1.1))
    integers, ids = synthetic.draw_values(np.random.default_rng(0), 50_000, model.law)
    logits = model.logits(integers, ids)
    rare = np.where(ids >= synthetic._MOST_EFFECTS, 9_999_999, ids)
    assert np.array_equal(model.logits(integers, rare), logits)
    assert 0.1 < (1 / (1 + np.exp(-logits))).mean() < 0.4 and logits.std() > 0.5


def test_a_dataset_at_once(tmp_path):
    law = Law((1000, *[30] * 25), 1.2)
    layout = Layout(4, 1000)
    infos = [write_dataset(tmp_path / name, 30_000, law=law, seed=1, layout=layout) for name in ("a", "b")]
    assert infos[0] == infos[1] == read_info(tmp_path / "a")
    assert {name: split.rows for name, split in infos[0].splits.items()} == {
        "train": 24000,
        "valid": 3000,
        "test": 3000,
    }
    assert [each.rows for each in infos[0].categories] == [1001, *[31] * 25]
    tables = {}
    for name, split in infos[0].splits.items():
        tables[name] = pa.concat_tables([pq.read_table(tmp_path / "a" / part) for part in split.parts])
        assert tables[name].equals(pa.concat_tables([pq.read_table(tmp_path / "b" / part) for part in split.parts]))
    whole = pa.concat_tables(tables.values())
    assert len({tuple(row.values()) for row in whole.select([*INTEGERS[6:], "C1", "C2"]).to_pylist()}) > 29_900
    model = synthetic.PlantedModel(0, law)
    for name, table in tables.items():  # the ids and integers are those that the clicks were drawn from
        integers = np.stack([np.expm1(table[column].to_numpy()) for column in INTEGERS])
        logits = model.logits(integers, np.stack([table[column].to_numpy() - 1 for column in CATEGORIES]))
        assert roc_auc_score(table["label"].to_numpy(), logits) == pytest.approx(infos[0].best_auc[name], abs=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    with pytest.raises(UserError, match="a: exists already"):
        write_dataset(tmp_path / "a", 100)


def test_an_interrupted_dataset_leaves_nothing(tmp_path, monkeypatch, capsys):
    law, layout, parts = Law((30,) * 26), Layout(2, 50), []
    draw = synthetic.PlantedModel.draw

    def interrupted(self, rng, rows):
        parts.append(rows)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return draw(self, rng, rows)

    monkeypatch.setattr(synthetic.PlantedModel, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "a", 1000, law=law, layout=layout)
    assert parts[2:] and not list(tmp_path.iterdir())
    parts.clear()
    assert main(["synth", str(tmp_path / "a"), "--format", "parquet", "--rows", "1000"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was left behind\n" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cardinalities", "criteo"], "cardinalities: 0 numbers; allowed: planted, kaggle, mlperf, or 26 numbers"),
        (["--cardinalities", "1,2,3"], "cardinalities: 3 numbers; allowed: "),
        (["--exponent", "-1"], "exponent: -1.0 is impossible; allowed: 0"),
        (["--format", "parquet", "--split", "half"], "split: 'half'; allowed: "),
        (["--split", "none"], "split: 'none': rows in format tsv are one file, which prepare splits; allowed: with "),
    ],
)
def test_bad_words_to_synth_are_one_line(tmp_path, capsys, words, message):
    assert main(["synth", str(tmp_path / "out"), "--rows", "100", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_too_few_rows_for_a_split_ask_for_more_rows(tmp_path, capsys):
    assert main(["synth", str(tmp_path / "a"), "--format", "parquet", "--rows", "5"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: split valid: has no rows, of 5 in all") and "; give more --rows, or" in said


@pytest.mark.parametrize("form", ["tsv", "parquet"])
def test_a_name_that_is_not_utf8_is_one_line(tmp_path, capsys, form):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/o\xff")
    for words in (["synth", name, "--format", form, "--rows", "100"], ["prepare", name, name, "--format", "kaggle"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.endswith("/o\\udcff': is not UTF-8; allowed: names in UTF-8; rename it\n") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_synth_says_what_it_wrote(tmp_path, capsys):
    numbers = ",".join(["50"] * 26)
    assert main(["synth", str(tmp_path / "a.tsv"), "--rows", "500", "--cardinalities", numbers]) == 0
    assert main(["synth", str(tmp_path / "b"), "--rows", "5000", "--format", "parquet", "--exponent", "1.1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "a.tsv: 500 rows" in said[0] and "b: train 4,000 rows" in said[1] and "best reachable AUC" in said[3]

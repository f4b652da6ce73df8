"""Every refusal before a rank starts; nothing is left behind by any."""

import json
from pathlib import Path

import pytest
import torch

from dlrm_dist import preflight
from dlrm_dist.config import load
from dlrm_dist.errors import UserError
from tests.helpers import LANES, numbered_dataset


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numbered_dataset(tmp_path / "clicks", {"train": 50, "valid": 3, "test": 20})
    return tmp_path


def check(arguments, world_size):
    return preflight.check(arguments, world_size, world_size)


def refusal(world_size, *arguments, path="clicks"):
    with pytest.raises(UserError) as caught:
        check(["--data.path", path, "--runtime.device", "cpu", *arguments], world_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_fits_is_let_through_and_leaves_nothing(folder):
    before = sorted(folder.rglob("*"))
    check(["--data.path", "clicks", "--runtime.device", "cpu", "--train.batch_size", "50"], 3)
    check(["--data.path", "clicks", "--eval.split", "test", "--runtime.device", "cpu"], LANES)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("key", ["train", "eval"])
def test_a_batch_smaller_than_the_ranks(folder, key):
    check(["--data.path", "clicks", "--runtime.device", "cpu", f"--{key}.batch_size", "3"], 3)
    told = refusal(3, f"--{key}.batch_size", "2")
    assert told.startswith(f"{key}.batch_size is 2, the global batch of 3 ranks") and "use 3 or more" in told


def test_a_missing_split(folder):
    told = refusal(1, "--eval.split", "tset")
    assert told.startswith("clicks: has no split 'tset'; it has train, valid, test") and "eval.split" in told


def test_rows_grouped_by_what_is_no_category(folder):
    check(["--data.path", "clicks", "--runtime.device", "cpu", "--metrics.group_by", "C2"], 1)
    told = refusal(1, "--metrics.group_by", "D2")
    assert told == "metrics.group_by is 'D2'; allowed: one of the dataset's 2 categories; did you mean C2?"


def test_no_training_rows_at_all(folder):
    numbered_dataset(folder / "only", {"valid": 20})
    assert "has no split 'train'; it has valid" in refusal(1, path="only")


@pytest.mark.parametrize(("split", "rows", "ranks"), [("valid", 3, 4), ("test", 20, 21), ("train", 50, 51)])
def test_fewer_rows_than_ranks(folder, split, rows, ranks):
    arguments = ["--eval.split", split]
    assert f"split {split} has {rows} rows, too few for one batch on each of {ranks}" in refusal(ranks, *arguments)


def test_more_ranks_than_lanes(folder):
    told = refusal(13, "--eval.split", "test")
    assert told.startswith("clicks: is written in 12 lanes and serves at most as many ranks, not 13; ")


def test_dropping_the_last_batch_when_it_is_the_only_one(folder):
    dropping = ["--data.last_batch", "drop", "--train.batch_size"]
    check(["--data.path", "clicks", "--runtime.device", "cpu", *dropping, "50"], 1)
    told = refusal(1, *dropping, "51")
    assert told.startswith('clicks: split train has 50 rows, less than one batch of 51, and data.last_batch is "drop"')


REPLICATED = ("--sharding.types", "data_parallel")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer.sparse", "adam"], "adam, which has no fused kernel on CPU for row_wise tables; allow data_p"),
        (["--optimizer.sparse", "adam", "--sharding.types", "data_parallel,table_wise"], "for table_wise tables"),
        (["--optimizer.table_weight_decay", "1e-5"], "touch looked-up rows only; allow data_parallel only"),
        (["--optimizer.sparse_weight_decay", "1e-5", *REPLICATED], "which data-parallel tables do not know"),
        (["--optimizer.sparse_weight_decay", "1e-5", "--optimizer.sparse", "sgd"], "kernel of sgd ignores it"),
        (["--optimizer.sparse_weight_decay", "1e-5", "--optimizer.sparse", "adagrad"], "kernel of adagrad ignores it"),
        (["--optimizer.sparse_weight_decay", "1", "--optimizer.table_weight_decay", "1"], "exclude each other"),
        ([*REPLICATED, "--model.table_precision", "fp16"], "moments of rowwise_adagrad would be of that precision"),
        (["--train.micro_batches", "26", "--train.batch_size", "50"], "a rank of 2 gets 25: each part needs a row"),
        (
            ["--train.micro_batches", "2", "--model.name", "paddlerec", "--model.top_mlp", "8,2"],
            "the model has batch normalisation",
        ),
        (["--train.micro_batches", "2", "--model.batch_norm", "true"], "the model has batch normalisation"),
        (["--model.name", "paddlerec", "--model.top_mlp", "8,2", "--model.dropout", ".1"], "but paddlerec has none"),
        (["--optimizer.eps", "0"], "optimizer.eps: Input should be greater than 0"),
        (["--model.init_from", "nowhere"], "nowhere: "),
        (["--schedule.steps", "3"], "schedule.steps is 3, and schedule.decay is none; leave it out, or choose"),
        (["--schedule.decay", "plateau", "--schedule.start", "3"], "schedule.start is 3, and schedule.decay is plat"),
        (
            ["--schedule.decay", "cosine", "--schedule.power", "1"],
            "schedule.power is 1.0, and schedule.decay is cos",
        ),
        (["--schedule.end_factor", ".1"], "schedule.end_factor is 0.1, and schedule.decay is none; leave it out, or"),
        (["--schedule.decay", "cosine", "--schedule.factor", ".5"], "cosine; leave it out, or choose step or plateau"),
        (["--schedule.decay", "step", "--schedule.patience", "2"], "step; leave it out, or choose plateau"),
        (["--schedule.decay", "step"], "schedule.steps must say how many"),
        (
            ["--schedule.decay", "cosine", "--schedule.warmup_steps", "3", "--schedule.start", "2"],
            "schedule.start is 2, inside the warm-up",
        ),
    ],
)
def test_optimizers_and_schedules_that_cannot_be(folder, words, said):
    assert said in refusal(2, *words, path="no data is read")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--schedule.warmup_steps", "11"],
            "the warm-up (schedule.warmup_steps) ends with step 11, and the run has 10 st",
        ),
        (["--schedule.decay", "cosine", "--schedule.start", "10"], "begins behind step 10, and the run has 10 steps"),
        (["--schedule.decay", "polynomial", "--schedule.steps", "11"], "decay ends with step 0 + 11 (schedule.start, "),
        (
            ["--schedule.decay", "step", "--schedule.steps", "10"],
            "the step decay has its first drop behind step 0 + 10",
        ),
    ],
)
def test_a_schedule_longer_than_the_run(folder, words, said):
    """50 rows in batches of 10, twice; and where the number of steps is given, without a look at the data."""
    assert said in refusal(2, "--train.batch_size", "10", *words)
    assert said in refusal(2, "--train.max_steps", "10", *words, path="no data is read")
    check(["--data.path", "clicks", "--runtime.device", "cpu", "--train.batch_size", "9", *words], 2)


def test_what_the_optimizers_can_do(folder):
    """None is refused: the seconds of grace come back."""
    always = ["--data.path", "clicks", "--runtime.device", "cpu", "--runtime.grace_s", "7"]
    adam = ("--optimizer.sparse", "adam", "--optimizer.table_weight_decay", "1e-5", *REPLICATED)
    decay = ("--optimizer.sparse_weight_decay", "1e-5")
    parts = ("--train.micro_batches", "25", "--train.batch_size", "50")
    assert [check([*always, *words], 2) for words in (adam, decay, parts)] == [7, 7, 7]


@pytest.mark.parametrize("gpus", [0, 1])
def test_more_ranks_than_gpus(folder, monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    told = refusal(2, "--runtime.device", "cuda")
    assert told.startswith(f"runtime.device is cuda, but this host has {gpus} GPUs for 2 ranks; ")


def test_a_runs_name_that_is_taken(folder, monkeypatch):
    (folder / "runs" / "mine").mkdir(parents=True)
    assert refusal(1, "--run.name", "mine").startswith("runs/mine: a run is there already; choose another --run.name")
    check(["--data.path", "clicks", "--runtime.device", "cpu", "--run.name", "mine", "--run.folder", "other"], 1)
    # Rank 1 comes when rank 0 has perhaps made the folder, which then is its own run's.
    monkeypatch.setenv("RANK", "1")
    check(["--data.path", "clicks", "--runtime.device", "cpu", "--run.name", "mine"], 1)


def test_a_wrong_config_and_a_missing_dataset(folder):
    assert "did you mean train.batch_size?" in refusal(1, "--train.bach_size", "3")
    told = refusal(1, path="elsewhere")
    assert told.startswith("elsewhere: no prepared dataset here") and "dlrm-dist prepare" in told
    (folder / "empty").mkdir()
    assert refusal(1, "--data.planted_rows", "500", path="empty").startswith("empty: no prepared dataset here")


def test_what_is_to_be_planted_is_not_looked_for(folder):
    words = ["--data.path", "new", "--data.planted_rows", "100", "--runtime.device", "cpu", "--runtime.grace_s", "7"]
    assert check(words, 2) == 7 and not Path("new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--eval.split", "tset"), "new: has no split 'tset'; it has train, valid, test"),
        (("--model.num_embeddings", "3,4"), "model.num_embeddings has 2 tables, the dataset 26 categories"),
        (("--schedule.warmup_steps", "9999"), "schedule.warmup_steps"),
        (("--metrics.group_by", "C99"), "metrics.group_by"),
        (("--data.last_batch", "drop"), 'less than one batch of 512, and data.last_batch is "drop"'),
    ],
)
def test_what_planted_data_would_lack_is_said_before_they_are_made(folder, words, said):
    assert said in refusal(2, "--data.planted_rows", "500", "--train.batch_size", "512", *words, path="new")
    check(["--runtime.device", "cpu"], 2)  # the default path, where nothing is
    assert sorted(path.name for path in folder.iterdir()) == ["clicks"]


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_a_call_for_help_is_let_through(folder, word):
    wrong = ["--train.bach_size", "3"]
    assert "did you mean train.batch_size?" in refusal(99, *wrong)
    check([*wrong, word], 99)


def rewritten(folder, **changes):
    """The dataset with other values in its dataset.json."""
    path = folder / "clicks" / "dataset.json"
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


def test_an_id_beyond_its_table(folder):
    rewritten(folder, categories=[{"name": "C1", "rows": 49}, {"name": "C2", "rows": 7}])
    told = refusal(2)
    assert "clicks/train/part-" in told and "column C1: id 49 lies outside its table of 49 rows (0 to 48)" in told


@pytest.mark.parametrize("rows", [49, 51, 0])
def test_a_dataset_of_other_rows_than_promised(folder, rows):
    splits = json.loads((folder / "clicks" / "dataset.json").read_text())["splits"]
    rewritten(folder, splits=splits | {"train": splits["train"] | {"rows": rows}})
    assert "50 rows in" in refusal(1) if rows else "too few for one batch" in refusal(1)


@pytest.mark.parametrize("layout", [{"lanes": 6}, {"group_rows": 5}])
def test_a_dataset_of_another_layout_than_promised(folder, layout):
    rewritten(folder, **layout)
    assert "where dataset.json promises 50 in" in refusal(1)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"dense": ["I1", "I9"]}, "column I9 is missing"),
        ({"dense": ["I1", "C2"], "categories": [{"name": "C1", "rows": 10_000}]}, "column C2 is int32"),
        ({"dense": ["I1"], "categories": [{"name": "I2", "rows": 9}]}, "column I2 is float"),
        ({"dense": ["I1", "I1"]}, "column I1 is named twice"),
        ({"categories": []}, "categories"),
        ({"lanes": 0}, "lanes"),
        ({"version": 7}, "version"),
    ],
)
def test_columns_that_are_not_there_or_of_another_kind(folder, columns, said):
    rewritten(folder, **columns)
    assert said in refusal(1)


def test_a_damaged_part(folder):
    part = folder / "clicks" / "train" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    assert "part-00000.parquet: not a readable Parquet file" in refusal(1)


@pytest.mark.parametrize("key", ["run.folder", "data.path"])
def test_a_folder_that_cannot_be_made(folder, key):
    (folder / "file").touch()
    words = ["--data.planted_rows", "500"] if key == "data.path" else []
    told = refusal(1, f"--{key}", "file/below", *words, path="new")
    assert told.startswith(f"{key} file/below: cannot be made: ") and "file is not a folder" in told


def test_an_exchange_in_int8_that_does_not_work(folder):
    int8 = ("--sharding.comm_precision", "int8")
    assert "does not work with row_wise" in refusal(2, *int8)
    assert "needs a multiple of 8 rows on a rank; train.batch_size gives 9" in refusal(
        2, *int8, "--sharding.types", "table_wise", "--train.batch_size", "18"
    )


def test_tables_that_do_not_fit_the_dataset(folder):
    assert "C1 9999 rows, but the dataset has ids up to 9999" in refusal(1, "--model.num_embeddings", "9999,7")
    assert "has 3 tables, the dataset 2 categories" in refusal(1, "--model.num_embeddings", "10000,7,7")
    assert "has 1 values for 2 categories" in refusal(1, "--model.multi_hot_sizes", "2")
    check(["--data.path", "clicks", "--runtime.device", "cpu", "--model.num_embeddings", "10001,7"], 1)


def test_tf32_is_of_gpus(folder):
    told = refusal(1, "--train.precision", "tf32")
    assert told.startswith("train.precision is tf32, which GPUs alone have") and "allowed here: fp32, bf16" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.name", "paddlerec", "--model.top_mlp", "2"], "model.name paddlerec has one table for all, but each"),
        (["--model.shared_tables", "C3+C4"], "model.shared_tables has C3+C4, but each category of the dataset has a"),
    ],
)
def test_one_table_for_categories_with_vocabularies_of_their_own(folder, words, said):
    assert refusal(1, *words, "--data.planted_rows", "2000", path="to come").startswith(said)
    assert not (folder / "to come").exists()


def test_keys_that_another_model_reads_are_named():
    words = ["--model.name", "dcn", "--model.top_mlp", "8,1", "--model.cross_rank", "3", "--model.cross_layers", "2"]
    assert load(words).model.unread == ("model.top_mlp", "model.cross_rank")
    assert load([]).model.unread == ()

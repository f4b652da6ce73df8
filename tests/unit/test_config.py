import json
import os
import re

import pytest

from dlrm_dist import config
from dlrm_dist.config import Config, load
from dlrm_dist.errors import UserError
from tests.helpers import ROOT, run_command

NO_LIMIT = [
    "model.num_embeddings",
    "model.multi_hot_sizes",
    "model.embedding_dims",
    "model.init_from",
    "metrics.group_by",
    "sharding.plan",
    "sharding.cluster",
    "sharding.constraints",
    "train.max_steps",
    "schedule.start",
    "schedule.steps",
    "schedule.stop_patience",
    "schedule.target_auc",
    "optimizer.clip_norm",
    "sharding.hbm_gib",
    "data.planted_rows",
    "data.expand_multi_hot",
    "optimizer.sparse_learning_rate",
    "optimizer.dense_learning_rate",
]
"""Keys whose default is that there is none."""
OTHERS = {
    "data.path": "a b/ü",
    "data.planted_rows": 500,
    "data.last_batch": "drop",
    "data.expand_multi_hot": [3, 1],
    "model.name": "dcn",
    "model.num_embeddings": [9, 10],
    "model.multi_hot_sizes": [1.5, 3.0],
    "model.num_dense": 4,
    "model.cross_layers": 2,
    "model.cross_rank": 16,
    "model.projection_branch1": [32],
    "model.projection_branch2": [8, 48],
    "model.embedding_dims": [8, 12],
    "model.shared_tables": ["C1+C2", "C4+C3"],
    "model.deep_mlp": [7],
    "model.cross": "matrix",
    "model.batch_norm": True,
    "model.dropout": 0.25,
    "model.table_precision": "fp16",
    "model.embedding_dim": 8,
    "model.bottom_mlp": [32, 8],
    "model.top_mlp": [5, 1],
    "model.managed_collisions": ["C3", "C10"],
    "model.managed_rows": 5000,
    "model.eviction_policy": "lru",
    "model.eviction_interval": 7,
    "model.init_from": "runs/before",
    "optimizer.sparse": "sgd",
    "optimizer.dense": "adam",
    "optimizer.sparse_learning_rate": 0.1,
    "optimizer.dense_learning_rate": 1e-5,
    "optimizer.eps": 1e-10,
    "optimizer.sparse_weight_decay": 1e-3,
    "optimizer.table_weight_decay": 1e-4,
    "optimizer.dense_weight_decay": 1e-5,
    "optimizer.clip_norm": 10.0,
    "schedule.warmup_steps": 6,
    "schedule.decay": "step",
    "schedule.start": 8,
    "schedule.steps": 2,
    "schedule.end_factor": 0.01,
    "schedule.factor": 0.5,
    "schedule.stop_patience": 4,
    "schedule.target_auc": 0.8,
    "schedule.min_delta": 1e-4,
    "sharding.types": ["row_wise", "column_wise"],
    "sharding.comm_precision": "bf16",
    "sharding.plan": "a.plan.json",
    "sharding.cluster": "h100",
    "sharding.constraints": "mine.toml",
    "sharding.hbm_gib": 0.5,
    "train.batch_size": 7,
    "train.epochs": 3,
    "train.max_steps": 11,
    "train.learning_rate": 1.0,
    "train.micro_batches": 3,
    "train.seed": 9,
    "train.log_every": 1,
    "train.precision": "bf16",
    "train.profile": True,
    "train.mlperf_log": True,
    "train.resume": "auto",
    "checkpoint.every": 7,
    "checkpoint.every_minutes": 2.5,
    "checkpoint.keep": 5,
    "checkpoint.each_epoch": True,
    "checkpoint.async": False,
    "eval.split": "test",
    "eval.every": 4,
    "eval.batch_size": 100,
    "metrics.exact": True,
    "metrics.group_by": "C3",
    "runtime.device": "cpu",
    "runtime.threads": 2,
    "runtime.timeout_s": 60,
    "runtime.grace_s": 90,
    "mlperf.organization": "me",
    "mlperf.platform": "my laptop",
    "mlperf.division": "open",
    "mlperf.status": "onprem",
    "run.folder": "elsewhere",
    "run.name": 'it\'s "007"\\',
}
"""A value for each key, other than its default; but for two, which go with another decay."""
POLYNOMIAL = {"schedule.decay": "polynomial", "schedule.power": 1.0}
PLATEAU = {"schedule.decay": "plateau", "schedule.patience": 2}
GIVEN = {"others": OTHERS, "polynomial": POLYNOMIAL, "plateau": PLATEAU}


def value(loaded, key):
    section, name = key.split(".")
    return json.loads(loaded.model_dump_json())[section][name]


def as_toml(values):
    """The keys as tables; numbers, lists and strings are written in JSON's way, which TOML reads."""
    sections = {}
    for key, each in values.items():
        section, name = key.split(".")
        sections.setdefault(section, []).append(f"{name} = {json.dumps(each, ensure_ascii=False)}")
    return "\n".join("\n".join([f"[{section}]", *lines]) for section, lines in sections.items())


def as_arguments(values):
    """The keys as `--key value`; a list as `[a,b]`."""
    words = {
        key: f"[{','.join(map(str, each))}]" if isinstance(each, list) else str(each) for key, each in values.items()
    }
    return [word for key, each in words.items() for word in (f"--{key}", each)]


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "given.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["--config", str(path)]

    return write


def error_of(arguments):
    with pytest.raises(UserError) as caught:
        load(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_table_of_other_values_has_each_key():
    each = POLYNOMIAL | PLATEAU | OTHERS
    assert set(each) == set(config.known_keys())
    assert [key for key in each if value(load([]), key) == each[key]] == []


def test_defaults():
    loaded = load([])
    assert loaded == Config()
    assert (loaded.train.batch_size, loaded.train.learning_rate, loaded.train.max_steps) == (2048, 0.02, None)
    assert (loaded.model.embedding_dim, loaded.model.bottom_mlp, loaded.model.top_mlp) == (16, (64, 16), (128, 64, 1))
    assert (loaded.optimizer.sparse, loaded.optimizer.dense) == ("rowwise_adagrad", "adagrad")
    assert [key for key in config.known_keys() if value(loaded, key) is None] == [
        key for key in config.known_keys() if key in NO_LIMIT
    ]


@pytest.mark.parametrize("source", ["toml", "arguments", "arguments with ="])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_each_key_can_be_set(toml, source, given):
    if source == "toml":
        words = toml(as_toml(given))
    else:
        words = as_arguments(given)
        if source == "arguments with =":
            words = [f"{key}={each}" for key, each in zip(words[::2], words[1::2], strict=True)]
    loaded = load(words)
    assert {key: value(loaded, key) for key in given} == given


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(toml):
    words = toml("[train]\nbatch_size = 3\nseed = 4\n[model]\nbottom_mlp = [4, 8]\n")
    loaded = load(["--train.batch_size", "9", *words, "--model.embedding_dim", "8"])
    assert (loaded.train.batch_size, loaded.train.seed, loaded.train.epochs) == (9, 4, 2)
    assert (loaded.model.embedding_dim, loaded.model.bottom_mlp) == (8, (4, 8))
    assert load([f"--config={words[1]}", "--model.embedding_dim=8"]).train.batch_size == 3


@pytest.mark.parametrize("bottom", ["[32,16]", "32,16"])
def test_forms_of_a_list(bottom):
    assert load(["--model.bottom_mlp", bottom]).model.bottom_mlp == (32, 16)


def test_of_a_key_that_is_given_twice_the_last_value_counts():
    words = ["--model.bottom_mlp", "8,16", "--train.seed=1", "--train.seed", "-1", "--model.bottom_mlp=32,16"]
    loaded = load([*words, "--train.seed", "2"])
    assert (loaded.model.bottom_mlp, loaded.train.seed) == ((32, 16), 2)


@pytest.mark.parametrize("values", [{}, *GIVEN.values(), {"train.max_steps": 1}], ids=["defaults", *GIVEN, "one"])
def test_what_is_written_is_read_back_equal(toml, tmp_path, values):
    loaded = load(toml(as_toml(values)))
    loaded.write(tmp_path / "written.toml")
    assert load(["--config", str(tmp_path / "written.toml")]) == loaded
    assert (loaded == Config()) == (not values)


def test_a_config_cannot_be_changed():
    loaded = load([])
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        loaded.train = loaded.train


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("train.bach_size", "train.batch_size"),
        ("train.batch-size", "train.batch_size"),
        ("optimzer.sparse", "optimizer.sparse"),
        ("model.embeding_dim", "model.embedding_dim"),
        ("eval.batchsize", "eval.batch_size"),
    ],
)
def test_unknown_keys_are_told_the_nearest(toml, key, near):
    expected = f"unknown config key {key}: did you mean {near}?"
    assert error_of([f"--{key}", "3"]) == error_of([f"--{key}=3"]) == expected
    section, name = key.split(".")
    told = error_of(toml(f"[{section}]\n{name} = 3"))
    nearest = near.split(".")[0]
    assert told == (
        expected if section in Config.sections else f"unknown config section {section}: did you mean [{nearest}]?"
    )


@pytest.mark.parametrize("text", ["[zzzz]\na = 1", "zzzz = 1"])
def test_unknown_sections_without_a_near_key_are_told_where_all_are(toml, text):
    assert error_of(["--zzzz", "1"]) == "unknown config key zzzz: see --help for all keys"
    assert error_of(toml(text)).startswith("unknown config section zzzz: sections are data, model, ")


@pytest.mark.parametrize("text", ["train = 3", "[[train]]\nseed = 1", 'train = "x"'])
def test_a_section_that_is_no_table(toml, text):
    assert error_of(toml(text)) == "config: train is a section, not a value; write [train] and its keys below"


@pytest.mark.parametrize(
    ("key", "wrong", "allowed"),
    [
        ("train.batch_size", "x", "valid integer"),
        ("train.batch_size", "1.5", "valid integer"),
        ("train.batch_size", "", "valid integer"),
        ("train.batch_size", "0", "greater than 0"),
        ("train.batch_size", "-5", "greater than 0"),
        ("train.max_steps", "0", "greater than 0"),
        ("train.seed", "-1", "greater than or equal to 0"),
        ("train.learning_rate", "-0.1", "greater than or equal to 0"),
        ("train.learning_rate", "nan", "finite"),
        ("train.learning_rate", "inf", "finite"),
        ("train.seed", "99999999999999999999999", "less than"),
        ("runtime.threads", "100000000", "less than"),
        ("runtime.timeout_s", "99999999999", "less than"),
        ("model.embedding_dim", "6", "multiple of 4"),
        ("data.planted_rows", "5", "greater than or equal to 100"),
        ("eval.every", "-1", "greater than or equal to 0"),
        ("sharding.hbm_gib", "0", "greater than 0"),
        ("sharding.types", "row_wize", "'row_wise'"),
        ("optimizer.sparse", "sdg", "'sgd'"),
        ("data.last_batch", "keep", "'pad' or 'drop'"),
        ("runtime.device", "gpu", "'auto', 'cpu' or 'cuda'"),
        ("runtime.threads", "many", "integer"),
        ("model.name", "dcnn", "'dlrm'"),
    ],
)
def test_wrong_values_name_key_found_and_allowed(toml, key, wrong, allowed):
    section, name = key.split(".")
    written = f'["{wrong}"]' if key == "sharding.types" else f'"{wrong}"'
    for told in (error_of([f"--{key}={wrong}"]), error_of(toml(f"[{section}]\n{name} = {written}"))):
        assert told.startswith(f"{key}: ") and allowed in told and f"found {wrong!r}" in told


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[train]\nbatch_size = 3.5", "train.batch_size"),
        ("[train]\nbatch_size = [1]", "train.batch_size"),
        ("[train]\nbatch_size = {a = 1}", "train.batch_size"),
        ("[eval]\nsplit = 5", "eval.split"),
        ('[sharding]\ntypes = "row_wise"', "sharding.types"),
        ("[model]\ntop_mlp = 1", "model.top_mlp"),
    ],
)
def test_values_of_another_type_in_the_file(toml, text, key):
    assert error_of(toml(text)).startswith(f"{key}: Input should be ")


def test_several_mistakes_are_one_line_that_counts_them(toml):
    told = error_of(toml("[train]\nbatch_size = 0\nepochs = 0\nseed = -1"))
    assert told.startswith("train.batch_size: ") and told.endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.embedding_dim": 8}, ["model.bottom_mlp", "model.embedding_dim (8)", "[64, 16]"]),
        ({"model.bottom_mlp": [64, 32]}, ["model.bottom_mlp", "model.embedding_dim (16)", "[64, 32]"]),
        ({"model.bottom_mlp": []}, ["model.bottom_mlp", "[]"]),
        ({"model.top_mlp": [64, 2]}, ["model.top_mlp", "must end with 1", "[64, 2]"]),
        ({"model.top_mlp": []}, ["model.top_mlp", "[]"]),
        ({"model.name": "paddlerec"}, ["model.top_mlp", "must end with 2", "[128, 64, 1]"]),
        ({"model.name": "dcn", "model.deep_mlp": []}, ["model.deep_mlp", "a layer at least"]),
        (
            {"model.name": "dlrm_projection", "model.projection_branch2": [64, 24]},
            ["model.projection_branch2", "multiple of model.embedding_dim (16)", "[64, 24]"],
        ),
        ({"model.name": "dlrm_projection", "model.projection_branch1": []}, ["model.projection_branch1", "[]"]),
        ({"model.embedding_dims": [8, 4]}, ["model.embedding_dims is for dcn", "model.name is dlrm"]),
        (
            {"model.name": "dcn", "model.embedding_dims": [8, 4], "model.num_embeddings": [9]},
            ["model.embedding_dims has 2 values for the 1 tables"],
        ),
        (
            {"model.name": "paddlerec", "model.top_mlp": [4, 2], "model.shared_tables": ["C1+C2"]},
            ["model.shared_tables is ['C1+C2']", "paddlerec has one table"],
        ),
    ],
)
def test_widths_that_do_not_fit(toml, changes, told):
    for words in (as_arguments(changes), toml(as_toml(changes))):
        assert all(part in error_of(words) for part in told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config"], "--config needs a file"),
        (["--config", "none.toml"], "--config none.toml: cannot be read: No such file"),
        (["--config=none.toml"], "--config none.toml: cannot be read: No such file"),
        (["--config", "/"], "--config /: cannot be read: Is a directory"),
        (["--train.batch_size"], "--train.batch_size: expected one argument"),
        (["--train.batch_size", "--train.seed", "3"], "--train.batch_size: expected one argument"),
        (["train.batch_size=3"], "unrecognized arguments: train.batch_size=3; see --help"),
        (["-x"], "unrecognized arguments: -x; see --help"),
    ],
)
def test_wrong_command_lines(words, told):
    assert told in error_of(words)


@pytest.mark.parametrize("text", ["a = ", "[train", "[train]\nseed = 1\nseed = 2", b"\xff\xfe"])
def test_files_that_are_no_toml(toml, text):
    words = toml(text)
    assert error_of(words).startswith(f"--config {words[1]}: is not valid TOML: ")


def test_no_environment_variable_is_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for key, each in OTHERS.items():
        section, name = key.split(".")
        for variable in (f"{section}__{name}", f"{section}_{name}", key, name):
            for form in (variable, variable.upper(), f"DLRM_DIST_{variable}".upper()):
                monkeypatch.setenv(form, str(each))
    for section in Config.sections:
        monkeypatch.setenv(section.upper(), json.dumps({"seed": 9, "epochs": 3}))
    (tmp_path / ".env").write_text("TRAIN__SEED=9\nTRAIN={'seed': 9}\n")
    assert load([]) == Config()
    assert load([]).train.seed == 0 and os.environ["TRAIN__SEED"] == "9"


def test_help_explains_every_key_and_exits_0(tmp_path):
    done = run_command("python", ROOT / "launch" / "train.py", "--help", folder=tmp_path, COLUMNS="500")
    assert (done.returncode, done.stderr) == (0, "")
    options = re.findall(r"^  --(\S+) \S+\s+([^-\s][^\n]*)\(default: .*\)$", done.stdout, flags=re.MULTILINE)
    explained = dict(options)
    assert set(explained) == set(config.known_keys())
    assert all(len(text.split()) >= 2 for text in explained.values())
    assert "--config FILE.toml" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_example_config_loads():
    examples = sorted((ROOT / "launch" / "configs").glob("*.toml"))
    assert ROOT / "launch" / "configs" / "demo.toml" in examples
    for path in examples:
        load(["--config", str(path)])

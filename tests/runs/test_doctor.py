"""`dlrm-dist doctor`, as a user runs it."""

import json

import pytest

from dlrm_dist.cli import main
from dlrm_dist.planning.cluster import Constants, load_cluster
from tests.helpers import ROOT, assert_refused, run_command

MODEL = ("--model.num_embeddings", "1000,2000", "--model.embedding_dim", "16")


def test_two_ranks_find_their_machine_and_write_a_cluster_file_that_plans(clicks, tmp_path):
    (tmp_path / "runs").mkdir()
    words = ("--ranks", "2", "--quick", "--json", "--data", clicks, "--storage", "runs", "--out", "mine.toml")
    done = run_command("dlrm-dist", "doctor", *words, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["ranks"], found["hosts"], found["device_type"]) == (2, 1, "cpu")
    assert {line["scope"] for line in found["lines"]} == {"inside a host"}
    assert {line["collective"] for line in found["lines"]} == {"all-reduce", "all-to-all"}
    size = sum(path.stat().st_size for path in clicks.rglob("*") if path.is_file())
    assert sum(each["bytes"] for each in found["reads"]) == size
    assert found["sights"] == [True, True]
    assert all(each["bytes"] > 0 for each in found["writes"])
    assert [*(tmp_path / "runs").iterdir()] == []

    cluster = load_cluster(str(tmp_path / "mine.toml"))
    assert (cluster.size, cluster.name) == ("1x2", "mine.toml")
    rate = max(line["bytes"] for line in found["lines"])
    (largest,) = (each for each in found["lines"] if (each["bytes"], each["collective"]) == (rate, "all-to-all"))
    assert cluster.value("intra_host_gb_s") == pytest.approx(largest["bytes"] / 2 / largest["seconds"] / 1e9, rel=1e-3)
    assert cluster.value("inter_host_gb_s") == load_cluster("cpu").value("inter_host_gb_s")
    assert {name for name, constant in cluster.constants if "dlrm-dist doctor --quick" in constant.source} == {
        *("ddr_gib", "ddr_gb_s", "host_link_gb_s", "intra_host_gb_s", "link_efficiency", "intra_host_latency_us"),
        *("fp32_tflop_s", "bf16_tflop_s"),
    }
    assert len(Constants.model_fields) == (tmp_path / "mine.toml").read_text().count(" source = ")
    words = ("plan", "make", *MODEL, "--cluster", "mine.toml", "--out", "mine.plan.json")
    made = run_command("dlrm-dist", *words, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "planned for 2 ranks" in made.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nowhere"), "nowhere: no such file"),
        (("--storage", "nowhere"), "--storage nowhere: there is no folder nowhere"),
        (("--out", "there.toml"), "--out there.toml: is there already"),
        (("--out", "there.json"), "ends in .toml"),
        (("--out", "no/folder.toml"), "there is no folder no"),
        (("--ranks", "0"), "--ranks is 0"),
        (("--train.batch_size", "3"), "--train.batch_size; allowed: --runtime.*"),
        (("--runtime.device", "tpu"), "runtime.device"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("mine")
    assert main(["doctor", *words]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert said in output.err
    assert (tmp_path / "there.toml").read_text() == "mine"


def test_ranks_of_a_launcher_refuse_alike_and_one_speaks(tmp_path):
    words = ("--nproc_per_node", "2", ROOT / "launch" / "doctor.py", "--data", "nowhere")
    done = run_command("torchrun", *words, folder=tmp_path)
    assert done.returncode == 1  # torchrun's, whatever its ranks' is
    assert done.stderr.count("error: nowhere: no such file") == 1
    assert "exitcode  : 2" in done.stderr
    assert done.stdout == ""


def test_missing_data_with_several_ranks_is_said_once(tmp_path):
    assert_refused(run_command("dlrm-dist", "doctor", "--ranks", "2", "--data", "nowhere", folder=tmp_path), "nowhere")

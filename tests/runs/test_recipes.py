"""Every recipe in launch/configs loads, says how to run it, and trains."""

import json
import math
import re
import subprocess

import pytest

from dlrm_dist import cli
from dlrm_dist.config import load
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks
from tests.helpers import ROOT, run_command

CONFIGS = ROOT / "launch" / "configs"
RECIPES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.toml"))
WANTED = {
    *("paddlerec_sample", "paddlerec_full", "dlrm_kaggle", "bars_x1_dlrm", "bars_x1_dcnv2"),
    *("criteo_1tb_dlrm", "mlperf_dcnv2", "paper_dlrm", "paper_dcn"),
}
"""The recipes of the field; each but the sample's has a twin in small/."""


@pytest.fixture(scope="module")
def results(clicks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    write_clicks(folder / "clicks.tsv", 500, seed=0)
    options = PrepareOptions("kaggle", split="0.8,0.2,0", ids="hash", hash_rows=101, lanes=4, group_rows=16)
    prepare([folder / "clicks.tsv"], folder / "one_space", options)
    program = ROOT / "tests" / "runs" / "recipes_program.py"
    words = [folder / "results.json", clicks, folder / "one_space", *(CONFIGS / recipe for recipe in RECIPES)]
    done = run_command("python", program, *words, folder=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: result for name, result in json.loads((folder / "results.json").read_text()).items()}


def header_of(recipe):
    return re.match(r"(#.*\n)+", (CONFIGS / recipe).read_text()).group()


def commands_of(recipe):
    """The commands of a recipe's header, each as the words that a shell makes of it."""
    text = "\n".join(line[4:] for line in header_of(recipe).splitlines() if line.startswith("#   "))
    programs = ("dlrm-dist", "torchx", "python", "cp")
    tell = "\n".join(f"{name}() {{ printf '%s\\0' {name} \"$@\"; echo; }}" for name in programs)
    told = subprocess.run(["bash", "-euc", f"{tell}\n{text}"], capture_output=True, text=True, check=True).stdout
    return [line.split("\0")[:-1] for line in told.splitlines()]


def test_the_recipes_of_the_field_are_there():
    assert {f"{name}.toml" for name in WANTED} <= set(RECIPES)
    twins = {"small/paddlerec.toml", *(f"small/{name}.toml" for name in WANTED if not name.startswith("paddlerec"))}
    assert twins <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_how_to_run_it_and_trains(recipe, results):
    header = header_of(recipe)
    command = f"launch/configs/{recipe}"
    assert re.search(
        rf"^#   .*{command}|^#   python benchmarks/dlrm_against_dcn.py|^#       --config {command}", header, re.M
    )
    assert "Expected" in header
    assert re.search(r"\b(an?|one|two|six|[\d.]+) (good )?(second|minute|hour)s?\b|half a minute", header, re.I), (
        "no time"
    )
    assert re.search(r"AUC|accuracy", header), "no result"
    result = results[str(CONFIGS / recipe)]
    assert result["steps"] == 3 and math.isfinite(result["log_loss"])
    load(["--config", str(CONFIGS / recipe)])


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_commands_of_a_recipe_are_understood(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    for program, *words in commands_of(recipe):
        if program == "dlrm-dist":
            cli.parse(words)
        elif program == "torchx":
            load(words[words.index("launch/train.py") + 1 :])
        elif program == "python":
            assert all((ROOT / word).exists() for word in words if word.endswith((".py", ".toml")))

"""A real run looked at: TensorBoard's curves over a resume, its report in a browser, the table of runs."""

import json
import re
import shutil
import subprocess

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import ROOT, assert_refused, run_command

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
CURVE = {"light": (0x2F, 0x6F, 0xB7), "dark": (0x6C, 0xB0, 0xF5)}
PAGE = {"light": (255, 255, 255), "dark": (20, 22, 26)}


def train(folder, data, *arguments):
    always = ["--data.path", data, "--runtime.device", "cpu", "--train.batch_size", 100, "--train.log_every", 1]
    done = run_command("python", ROOT / "launch" / "train.py", *always, "--run.name", "mine", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def folder(clicks, tmp_path_factory):
    """Six steps of a run whose last checkpoint is lost, and which went on from the one before to step 8."""
    folder = tmp_path_factory.mktemp("looking")
    train(folder, clicks, "--train.max_steps", 6, "--checkpoint.every", 4, "--optimizer.dense_learning_rate", 0.01)
    (kept,) = [path for path in (folder / "runs/mine/checkpoints").iterdir() if re.search(r"0*4$", path.name)]
    for path in (folder / "runs/mine/checkpoints").iterdir():
        if path != kept:
            shutil.rmtree(path)
    resumed = ("--train.max_steps", 8, "--train.resume", "auto", "--optimizer.dense_learning_rate", 0.01)
    train(folder, clicks, *resumed)
    return folder


def test_a_resumed_run_goes_on_with_the_same_curves(folder):
    run = folder / "runs" / "mine"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    reports = {line["step"]: line for line in lines if line["split"] == "train"}
    assert sorted(reports) == [*range(1, 9)]
    events = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=True).Reload()
    tags = {
        "loss": "log_loss/train",
        "auc": "auc/train",
        "lr_sparse": "learning_rate/sparse",
        "lr_dense": "learning_rate/dense",
    }
    tags |= {"samples_per_s": "speed/samples_per_s", "host_peak_mib": "memory/host_peak_mib"}
    for key, tag in tags.items():
        points = [(point.step, point.value) for point in events.Scalars(tag)]
        assert points == [(step, pytest.approx(reports[step][key], rel=1e-6)) for step in range(1, 9)]
    assert (reports[8]["lr_sparse"], reports[8]["lr_dense"]) == (0.02, 0.01)
    assert 50 < reports[8]["host_peak_mib"] < 20_000
    assert [point.step for point in events.Scalars("auc/valid")] == [8]
    assert {"ne/valid", "log_loss/valid", "step_ms/input"} <= set(events.Tags()["scalars"])


def test_the_table_and_the_page(folder):
    listed = json.loads(run_command("dlrm-dist", "runs", "--json", folder=folder).stdout)
    assert [(one["name"], one["state"], one["step"]) for one in listed] == [("mine", "finished", 8)]
    assert_refused(run_command("dlrm-dist", "runs", "nowhere", folder=folder), "nowhere: no folder here")
    assert_refused(run_command("dlrm-dist", "report", "nowhere", folder=folder), "not the folder of a run")
    twice = run_command("dlrm-dist", "report", "runs/mine", "runs/mine", folder=folder)
    assert_refused(twice, "--out is needed")
    done = run_command("dlrm-dist", "report", "runs/mine", "runs/mine", "--out", "two.html", folder=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "two.html: written\n", "")


def chromium(*options):
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    done = subprocess.run([*words, *options], capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout


@needs_chromium
def test_a_browser_has_the_curves(folder):
    page = folder / "runs" / "mine" / "report.html"
    dom = chromium("--dump-dom", page.as_uri())
    losses = re.search(r'aria-label="Log loss".*?<path class="curve c0" d="([^"]*)"', dom, re.DOTALL)
    assert losses and losses[1].count("L") == 7, "a curve through eight reports"


@needs_chromium
@pytest.mark.parametrize(("scheme", "size"), [("light", "1280,1600"), ("dark", "500,2400")])
def test_a_browser_draws_it_in_the_readers_colours(folder, tmp_path, scheme, size):
    page = folder / "runs" / "mine" / "report.html"
    number = {"dark": 0, "light": 1}[scheme]
    picture = tmp_path / "picture.png"
    settings = f"--blink-settings=preferredColorScheme={number}"
    chromium(settings, f"--screenshot={picture}", f"--window-size={size}", page.as_uri())
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
        assert pixels.getpixel((2, 2)) == PAGE[scheme]
        counts = {colour: count for count, colour in pixels.getcolors(1 << 20)}
    assert counts[CURVE[scheme]] > 500

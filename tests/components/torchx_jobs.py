"""What a `dlrm` component makes of a command line for a scheduler; no runner, no network."""

import pytest
from torchx.specs.builders import materialize_appdef

from launch import dlrm_components, submission
from tests.helpers import ROOT

H100 = ["--cluster", "h100:2x8"]
CPU = ["--runtime.device", "cpu"]
PLAN = str(ROOT / "sharding_plans/mlperf_dcnv2_1x8_h100.plan.json")


def role(*words, scheduler="slurm", component="train"):
    """The one role of what a component makes, for a scheduler."""
    call = submission.Submission(scheduler, "", {"queue": "default"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission, "at_hand", lambda: call)
        (only,) = materialize_appdef(getattr(dlrm_components, component), list(words)).roles
    return only


def refusal(capsys, *words, **options):
    """The one line on stderr of a component that exits with 2."""
    with pytest.raises(SystemExit) as stop:
        role(*words, **options)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    return err

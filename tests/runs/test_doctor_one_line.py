"""`dlrm-dist doctor` where it cannot go on: a line, and no traceback."""

import os

import pytest

from tests.helpers import ROOT, assert_refused, run_command


@pytest.mark.skipif(os.geteuid() != 0, reason="others are told by the folder's rights, which bind root to nothing")
def test_storage_in_which_no_file_can_be_made(tmp_path):
    """/proc: root has the rights, and yet cannot."""
    done = run_command("dlrm-dist", "doctor", "--quick", "--ranks", "2", "--storage", "/proc", folder=tmp_path)
    assert_refused(done, "--storage /proc: cannot be written: ")


def test_torch_that_cannot_be_imported_is_the_finding(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('raise ImportError("libtorch.so: undefined symbol: x")')
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    words = ("-m", "dlrm_dist.cli", "doctor", "--quick")
    done = run_command("python", *words, folder=tmp_path, PYTHONPATH=paths)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "broken: torch cannot be imported: libtorch.so: undefined symbol: x; install the pins" in done.stderr

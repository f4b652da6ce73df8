"""Where components are tried: an empty folder, and with or without the schedulers' packages."""

import pytest

from launch import submission


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current one, empty; without what a launcher or a shell has set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def all_packages(monkeypatch):
    """As if each scheduler's package were installed: components do not import it."""
    monkeypatch.setattr(submission, "find_spec", lambda name: name)

"""Fixtures of several folders."""

import pytest
import torch

from tests import warm


@pytest.fixture(scope="session", autouse=True)
def _warm_python():
    """Ranks and commands are forks of a process that has imported everything."""
    with warm.server():
        yield


@pytest.fixture
def one_thread():
    """PyTorch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hosts import namespaces
from benchmarks.hosts.jobs import start_store
from benchmarks.hosts.namespaces import Host
from dlrm_dist.data.options import PrepareOptions
from dlrm_dist.data.prepare import prepare
from dlrm_dist.data.synthetic import write_clicks

TRAIN_ROWS = 2003
"""Does not divide by the batches of the tests."""


@pytest.fixture(scope="session")
def _can_make_hosts() -> None:
    reason = namespaces.why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def two_hosts(_can_make_hosts: None, tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Hosts alpha and beta, with their programs' output in `tmp_path`."""
    with namespaces.two_hosts(tmp_path / "output") as made:
        yield made


@pytest.fixture
def two_hosts_and_a_store(_can_make_hosts: None, tmp_path: Path) -> Iterator[tuple[Host, Host, Host]]:
    """Hosts alpha and beta, and a third, on which the rendezvous store runs."""
    with namespaces.hosts(tmp_path / "output", ("alpha", "beta", "gamma")) as (alpha, beta, gamma):
        start_store(gamma)
        yield alpha, beta, gamma


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted clicks in 12 lanes."""
    folder = tmp_path_factory.mktemp("clicks")
    write_clicks(folder / "train.tsv", TRAIN_ROWS, seed=0)
    write_clicks(folder / "valid.tsv", 200, seed=1)
    options = PrepareOptions("kaggle", valid=(folder / "valid.tsv",), lanes=12, group_rows=16)
    prepare([folder / "train.tsv"], folder / "data", options)
    return folder / "data"

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import namespaces
from tests.hosts.namespaces import Host


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

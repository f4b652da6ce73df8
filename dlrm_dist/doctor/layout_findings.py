"""What is amiss with how ranks are spread over hosts: a launcher that says it wrongly has links measured wrongly."""

from collections.abc import Iterator, Sequence

from dlrm_dist.doctor.finding import Finding
from dlrm_dist.doctor.host import Facts

_WAY_OUT = "set LOCAL_WORLD_SIZE to the ranks of one host and number them host by host, as torchrun does"


def findings(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Of the names that hosts have for themselves."""
    local = facts[0].local_world_size
    names = [
        list(dict.fromkeys(each.host for each in facts[first : first + local])) for first in range(0, len(facts), local)
    ]
    for number, several in enumerate(names):
        if len(several) > 1:
            yield Finding(
                "broken",
                f"host {number}",
                f"its {local} ranks are on {', '.join(several)}",
                "one host",
                "plans take the links between these for links inside a host",
                _WAY_OUT,
            )
    firsts = [several[0] for several in names]
    # A launcher that sets no LOCAL_WORLD_SIZE, such as mpirun, makes a host of every rank.
    for name in sorted({name for name in firsts if local == 1 and firsts.count(name) > 1}):
        yield Finding(
            "warning",
            f"host name {name}",
            f"of {firsts.count(name)} hosts",
            "one of its own for each host",
            "if they are one machine, what is said of links between hosts is of links inside one",
            _WAY_OUT,
        )

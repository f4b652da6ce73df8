"""Where the precision of an exchange counts: everywhere, or between hosts only."""

_SUFFIX = "_between_hosts"


def split(comm_precision: str) -> tuple[str, bool]:
    """The precision itself of a `sharding.comm_precision`, and whether it is for what travels between hosts only."""
    return comm_precision.removesuffix(_SUFFIX), comm_precision.endswith(_SUFFIX)

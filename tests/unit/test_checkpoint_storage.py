"""What a checkpoint's metadata may name: nothing that runs."""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from dlrm_dist.checkpoint.storage import Reader
from dlrm_dist.errors import UserError


class Stored:
    """Comes back from a pickle as `getattr(owner, name)`, as Python 3.11.2 stores a member of an enum."""

    def __init__(self, owner, name):
        self.parts = owner, name

    def __reduce__(self):
        return getattr, self.parts


def loaded(folder, content):
    folder.joinpath(".metadata").write_bytes(pickle.dumps(content))
    return Reader(folder).read_metadata()


class Metadata:
    """Stands for DCP's record, with what a test wants in it."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        from torch.distributed.checkpoint.metadata import Metadata as Real

        return Real, (self.value, None, {}, None)


@pytest.mark.parametrize("name", list(_MEM_FORMAT_ENCODING.__members__))
def test_a_member_of_the_enum_may_be_stored_by_getattr(tmp_path, name):
    found = loaded(tmp_path, Metadata(Stored(_MEM_FORMAT_ENCODING, name)))
    assert found.state_dict_metadata is _MEM_FORMAT_ENCODING[name]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(_MEM_FORMAT_ENCODING, "mro"), (_MEM_FORMAT_ENCODING, "__class__"), (Path, "unlink"), (OrderedDict, "fromkeys")],
)
def test_nothing_else_comes_by_getattr(tmp_path, owner, name):
    with pytest.raises(UserError, match=f"it takes '{name}' from .*, which has no place in a checkpoint; use another"):
        loaded(tmp_path, Metadata(Stored(owner, name)))

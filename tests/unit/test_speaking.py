"""Which rank says what went wrong."""

import socket
import threading

import pytest

from dlrm_dist import speaking
from dlrm_dist.errors import RankError, RunFailedError, UserError

ON = f"on {socket.gethostname()}: "


@pytest.fixture
def speakers(monkeypatch, capsys):
    """What each of 2 x 2 ranks says of an error."""

    def find(error, have_met):
        met = threading.Event()
        monkeypatch.setattr(speaking, "_met", met)
        if have_met:
            speaking.ranks_have_met()
        said = []
        for rank in range(4):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
            speaking.say(error)
            said.append(capsys.readouterr().err.removeprefix("error: ").removesuffix("\n"))
        return said

    return find


@pytest.mark.parametrize(
    ("error", "have_met", "expected"),
    [
        (UserError("no GPU"), False, ["no GPU", "", f"{ON}no GPU", ""]),
        (UserError("no GPU"), True, ["no GPU", "", "", ""]),
        (RunFailedError("no torch"), False, ["no torch", "", f"{ON}no torch", ""]),
        (RunFailedError("no torch"), True, ["no torch", "", "", ""]),
        (RunFailedError("out of memory", 3), True, ["", "", "", "out of memory"]),
    ],
)
def test_it_is_said_once_where_it_can_be_seen(speakers, error, have_met, expected):
    assert speakers(error, have_met) == expected


@pytest.mark.parametrize("have_met", [False, True])
def test_what_a_rank_has_met_alone_it_says_itself(speakers, have_met):
    assert all(said.endswith("bad row") for said in speakers(RankError("bad row"), have_met))

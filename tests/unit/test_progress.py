import io

import pytest

from dlrm_dist import progress


class Stderr(io.StringIO):
    """A file, or a terminal."""

    is_terminal = False

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def at_once(monkeypatch):
    """Progress of work of any length, without waiting for it."""
    monkeypatch.setattr(progress, "_SILENT_S", 1e-9)
    monkeypatch.setattr(progress, "_BETWEEN_LINES_S", 0.0)


def shown(monkeypatch, work, is_terminal=False):
    """What some work writes to stderr; not in a fixture, for pytest puts a stderr of its own before the test."""
    found = Stderr()
    found.is_terminal = is_terminal
    monkeypatch.setattr("sys.stderr", found)
    work()
    return found.getvalue()


def three():
    assert list(progress.each(range(3), "work", "files")) == [0, 1, 2]


def test_a_file_gets_whole_lines_with_rate_and_time_left(at_once, monkeypatch, capsys):
    text = shown(monkeypatch, three)
    lines = text.splitlines()
    assert len(lines) == 3 and "\r" not in text
    assert lines[0].startswith("work: 1 of 3 files, ") and lines[0].endswith(" left")
    assert "files/s" in lines[1]
    assert capsys.readouterr().out == ""


def test_without_a_total_there_is_no_time_left(at_once, monkeypatch):
    def work():
        with progress.bar("work", "placements") as bar:
            bar.update()

    text = shown(monkeypatch, work)
    assert text.startswith("work: 1.00 placements, ") and "left" not in text


def test_a_terminal_gets_a_bar(at_once, monkeypatch):
    text = shown(monkeypatch, three, is_terminal=True)
    assert "\r" in text and "files/s" in text


def test_one_rank_speaks(at_once, monkeypatch):
    assert shown(monkeypatch, lambda: list(progress.each(range(3), "work", "files", speaks=False))) == ""


def test_short_work_says_nothing(monkeypatch):
    assert shown(monkeypatch, three) == shown(monkeypatch, three, is_terminal=True) == ""

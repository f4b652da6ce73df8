"""How the doctor reads and writes: within its time and space, and knowing what came from memory."""

import mmap
import os
import time

import pytest

from dlrm_dist.data import files
from dlrm_dist.doctor import disk

MIB = 1 << 20


def space(free):
    return os.statvfs_result((4096, 4096, 0, 0, free // 4096, 0, 0, 0, 0, 255))


def test_writing_to_a_slow_disk_ends_in_time(tmp_path, monkeypatch):
    """4 MB/s: pieces of 32 MiB would take 8 s each."""
    synced = {}

    def slow(descriptor):
        size = os.fstat(descriptor).st_size
        time.sleep((size - synced.get(descriptor, 0)) / 4e6)
        synced[descriptor] = size

    monkeypatch.setattr(os, "fdatasync", slow)
    began = time.monotonic()
    found = disk.write_alone(tmp_path, 0.4, 1)
    assert time.monotonic() - began < 2.0  # 1, 1 and 2 MiB: 1.05 s
    assert disk.mb_s([found]) == pytest.approx(4, rel=0.2)
    assert [*tmp_path.iterdir()] == []


def test_writing_keeps_to_a_tenth_of_the_free_space(tmp_path, monkeypatch):
    """Two ranks of the host share it: 3.2 MiB for each."""
    monkeypatch.setattr(os, "statvfs", lambda _path: space(64 * MIB))
    found = disk.write_alone(tmp_path, 20, 2)
    assert (found.bytes, found.problem) == (2 * MIB, "")
    monkeypatch.setattr(os, "statvfs", lambda _path: space(4 * MIB))
    assert "is nearly full: 4 MiB are free" in disk.write_alone(tmp_path, 20, 1).problem


def test_what_is_in_the_page_cache_is_told(tmp_path):
    """A page is in the cache after it was read; `mincore` would say the same."""
    path = tmp_path / "rows"
    path.write_bytes(os.urandom(4 * mmap.PAGESIZE))
    (file,) = files.find(path)
    assert disk.cached_share([(file, 0), (file, 2 * mmap.PAGESIZE)]) == 1.0
    disk._forget(file)
    if disk.cached_share([(file, 0)]) == 1.0:
        pytest.skip("this folder is in memory itself (tmpfs)")
    disk._forget(file)
    assert disk.cached_share([(file, 0)]) == 0.0
    path.read_bytes()
    assert disk.cached_share([(file, 0)]) == 1.0


def test_of_no_data_and_of_a_file_that_went_away_nothing_is_told(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b"rows")
    (file,) = files.find(path)
    path.unlink()
    assert disk.cached_share([]) is None
    assert disk.cached_share([(file, 0)]) is None


def test_of_an_object_store_nothing_is_told(tmp_path):
    import fsspec

    with fsspec.open("memory://doctor/rows", "wb") as out:
        out.write(b"rows" * 1000)
    found = files.find("memory://doctor/rows")
    assert disk.cached_share([(each, 0) for each in found]) is None

"""Which files a source names, and where they may lie: globs, fsspec, S3."""

import gzip

import fsspec
import pyarrow.parquet as pq
import pytest

from dlrm_dist.data import files
from dlrm_dist.data.files import find
from dlrm_dist.data.prepare import prepare
from dlrm_dist.errors import UserError
from tests.unit.format_cases import SCHEMA, foreign, options, read


def test_globs_name_files_by_number(tmp_path):
    for day in (0, 2, 10):
        folder = tmp_path / f"d{day}"
        folder.mkdir()
        (folder / "x.tsv").write_text("x")
        (folder / "y.txt").write_text("y")
    (tmp_path / "[odd]").write_text("z")
    names = [file.name.removeprefix(f"{tmp_path}/") for file in find(f"{tmp_path}/d*/*.tsv")]
    assert names == ["d0/x.tsv", "d2/x.tsv", "d10/x.tsv"]
    assert [file.name for file in find(f"{tmp_path}/d?")] == [
        f"{tmp_path}/d{d}/{f}" for d in (0, 2) for f in ("x.tsv", "y.txt")
    ]
    assert [file.name for file in find(tmp_path / "[odd]")] == [f"{tmp_path}/[odd]"]
    with pytest.raises(UserError, match="no such file"):
        find(f"{tmp_path}/none*/x")


def test_globs_stay_within_names_and_leave_hidden_files_out(tmp_path, monkeypatch):
    for name in ("a/x", "a/b/x", "a/b/c/x", "a/.h/x", "a/.x", "a/.y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.chdir(tmp_path)
    for pattern, expected in {
        "a/*": ["a/b/x", "a/x"],
        "*/x": ["a/x"],
        "*/*/x": ["a/b/x"],
        "a/**/x": ["a/b/c/x", "a/b/x", "a/x"],
        "**/c/*": ["a/b/c/x"],
        "a/.[xy]": ["a/.x", "a/.y"],
        "a/**": ["a/b/c/x", "a/b/x", "a/x"],
    }.items():
        for name in (pattern, f"{tmp_path}/{pattern}", f"file://{tmp_path}/{pattern}"):
            names = [file.path.removeprefix(f"{tmp_path}/").removeprefix("./") for file in find(name)]
            assert names == expected, name


@pytest.mark.parametrize("how", ["file", "local", "hard", "soft"])
def test_a_file_by_two_names_is_named_twice(tmp_path, how):
    log = tmp_path / "log"
    log.write_text("".join(map(kaggle_row, range(10))))
    other = tmp_path / "other"
    if how == "hard":
        other.hardlink_to(log)
    elif how == "soft":
        other.symlink_to(log)
    else:
        other = f"{how}://{log}"
    with pytest.raises(UserError, match=rf"named twice( \(also as {log}\))?; allowed: each file once"):
        prepare([log], tmp_path / "out", options("kaggle", test=(other,)))


def kaggle_row(number):
    return f"{number % 2}\t{number}" + "\t1" * 12 + "\tff" * 26 + "\n"


def test_files_of_fsspecs_filesystems(tmp_path):
    with fsspec.open("memory://logs/day_0.gz", "wb") as file:
        file.write(gzip.compress("".join(map(kaggle_row, range(20))).encode()))
    with fsspec.open("memory://logs/day_1", "w") as file:
        file.write("".join(map(kaggle_row, range(20, 30))))
    info = prepare(["memory://logs/day_*"], tmp_path / "out", options("kaggle", ids="hash", dense="none"))
    assert read(tmp_path / "out")["I1"].to_pylist() == list(range(30))
    assert [name.split("/")[-1] for name in info.transform["sources"]["train"]] == ["day_0.gz", "day_1"]
    with pytest.raises(UserError, match="nothing://x: cannot be read: "):
        find("nothing://x")


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
@pytest.mark.parametrize(("options", "seconds"), [("", 15), ("?scheme=http", 15), ("?retry_limit_seconds=2", 2)])
def test_retries_of_googles_storage_end(scheme, options, seconds):
    system, path = files._filesystem(f"{scheme}://anonymous@bucket/x{options}")
    assert path == "bucket/x" and system.__reduce__()[1][0]["retry_time_limit"].total_seconds() == seconds


@pytest.fixture
def s3(monkeypatch):
    """An S3 server on loopback with a bucket `logs`; gives the options of its URLs and a client."""
    boto3, server_of = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="logs")
    yield f"?endpoint_override={host}%3A{port}&scheme=http&region=us-east-1", client
    server.stop()


def test_files_on_s3(tmp_path, s3):
    where, client = s3
    client.put_object(
        Bucket="logs", Key="days/day_1.gz", Body=gzip.compress("".join(map(kaggle_row, range(20))).encode())
    )
    client.put_object(Bucket="logs", Key="days/day_2", Body="".join(map(kaggle_row, range(20, 30))).encode())
    client.put_object(Bucket="logs", Key="days/.hidden", Body=b"x")
    assert [each.name for each in files.find_below("s3://logs" + where)] == [
        "s3://logs/days/day_1.gz",
        "s3://logs/days/day_2",
    ]
    (tmp_path / "schema.toml").write_text(SCHEMA)
    pq.write_table(foreign(40), tmp_path / "a.parquet")
    client.put_object(Bucket="logs", Key="a.parquet", Body=(tmp_path / "a.parquet").read_bytes())
    for number, source in enumerate(["s3://logs/days", "s3://logs/days/day_*"]):
        out = tmp_path / f"out{number}"
        info = prepare([source + where], out, options("kaggle", ids="hash", dense="none"))
        assert read(out)["I1"].to_pylist() == list(range(30))
        assert info.transform["sources"] == {"train": ["s3://logs/days/day_1.gz", "s3://logs/days/day_2"]}
    info = prepare(["s3://logs/a.parquet" + where], tmp_path / "p", options("parquet", schema=tmp_path / "schema.toml"))
    assert info.splits["train"].rows == 40
    with pytest.raises(UserError, match="s3://logs/none: no such file"):
        find("s3://logs/none" + where)
    with pytest.raises(UserError, match="s3://nobucket/x"):
        find("s3://user:key@nobucket/x" + where)

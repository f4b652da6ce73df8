import gzip
import math
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_dist.data import text as text_module
from dlrm_dist.data.files import File, find
from dlrm_dist.data.kaggle import Kaggle
from dlrm_dist.data.slot import Slot
from dlrm_dist.data.sources import BAD_ROWS
from dlrm_dist.data.text import Block, Counted, TextSource, count
from dlrm_dist.errors import UserError

NAMES = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
INTEGER = st.just("") | st.integers(-3, 100).map(str) | st.integers(-(10**17), 10**17).map(str)
HEX = st.just("") | st.integers(0, 2**32 - 1).map("{:08x}".format) | st.text("0123456789abcdefABCDEF", max_size=8)
ROW = st.tuples(st.sampled_from("01"), st.tuples(*[INTEGER] * 13), st.tuples(*[HEX] * 26))
ROWS = st.lists(ROW, min_size=1, max_size=6)


def line(label="1", dense=("5",) * 13, categories=("deadbeef",) * 26):
    return "\t".join([label, *dense, *categories])


def slot_line(label="1", dense=("0.5",) * 13, slots=((3, 7), (26, 1_000_000))):
    return " ".join(
        [f"click:{label}", *(f"dense_feature:{x}" for x in dense), *(f"{slot}:{id_}" for slot, id_ in slots)]
    )


def source(path, form=None, on_bad_row="error"):
    (file,) = find(path)
    return TextSource(file, form or Kaggle(), on_bad_row, count(file))


def parsed(tmp_path, content, form=None, name="log.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = source(path, form)
    pieces = list(found.read([0, found.rows]))
    assert sum(piece.lines for piece in pieces) == sum(piece.table.num_rows for piece in pieces) == found.rows
    return pa.concat_tables([piece.table for piece in pieces])


def parse(text, form):
    """The rows of a text, read from no file."""
    lines = text.count(b"\n") + (not text.endswith(b"\n"))
    made = TextSource(File("log", 0, 0, None, "log"), form, "error", Counted([lines], [0]))
    return made.parse(Block("log", 1, text, lines)).table


def reference(rows, dense):
    columns = [[int(label) for label, _, _ in rows]]
    for i in range(13):
        values = [int(integers[i] or 0) for _, integers, _ in rows]
        columns.append([np.float32(math.log(max(x, 0) + 1) if dense == "log1p" else x) for x in values])
    return columns, [[int(text[i], 16) if text[i] else None for _, _, text in rows] for i in range(26)]


@settings(deadline=None)  # the first call compiles
@given(ROWS, st.sampled_from(["log1p", "none"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_kaggle_rows_are_what_plain_python_reads(rows, dense, end, last_end):
    text = end.join(line(*row) for row in rows) + (end if last_end else "")
    table = parse(text.encode(), Kaggle(dense))
    assert table.column_names == NAMES
    assert table.schema.types == [pa.uint8()] + [pa.float32()] * 13 + [pa.uint32()] * 26
    numbers, categories = reference(rows, dense)
    columns = [column.to_pylist() for column in table.columns]
    assert columns[0] == numbers[0] and columns[14:] == categories
    np.testing.assert_allclose(columns[1:14], numbers[1:], rtol=1.2e-7)


def test_every_byte_of_a_category_is_judged():
    for position in range(8):
        for byte in set(range(256)) - set(b"\t\r\n"):
            text = b"0" * position + bytes([byte]) + b"0" * (7 - position)
            row = line().encode().replace(b"deadbeef", text)
            if chr(byte) in "0123456789abcdefABCDEF":
                assert parse(row, Kaggle("none"))["C26"].to_pylist() == [int(text, 16)]
            else:
                with pytest.raises(UserError, match=re.escape("column C1 (15th)")):
                    parse(row, Kaggle("none"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("dense", "first", "second"),
    [
        ("log3", [math.log(3), 0.0, 0.0, math.log(8)], [math.log(3), 0.0, 0.0, math.log(8)]),
        ("minmax", [0.0, -3 / 20, -2 / 20, 5 / 20], [0.0, 0.0, 1 / 603, 8 / 603]),
    ],
)
def test_transforms_of_other_recipes(dense, first, second, end):
    rows = [line(dense=(text,) * 13) for text in ("", "-3", "-2", "5")]
    table = parse(end.join(rows).encode(), Kaggle(dense))
    for name, expected in (("I1", first), ("I2", second)):
        np.testing.assert_allclose(table[name].to_numpy(), expected, rtol=1e-6)


def test_dense_transform(tmp_path):
    dense = ("-3", "", "0", "1", "99", "-1", "2", *["7"] * 6)
    row = parsed(tmp_path, line(dense=dense)).to_pylist()[0]
    expected = [0, 0, 0, math.log(2), math.log(100), 0, math.log(3)]
    assert [row[f"I{i}"] for i in range(1, 8)] == pytest.approx(expected, rel=1e-7)
    row = parsed(tmp_path, line(dense=dense), Kaggle("none")).to_pylist()[0]
    assert [row[f"I{i}"] for i in range(1, 8)] == [-3, 0, 0, 1, 99, -1, 2]


@pytest.mark.parametrize("size", [1, 50, 300, 1000, 10**6])
@pytest.mark.parametrize("end", ["\n", ""])
def test_blocks_are_whole_lines_whatever_their_size(tmp_path, monkeypatch, size, end):
    text = "\n".join(line(dense=(str(i),) * 13) for i in range(20)) + end
    monkeypatch.setattr(text_module, "BLOCK_BYTES", size)
    (tmp_path / "log.txt").write_text(text)
    blocks = list(source(tmp_path / "log.txt").blocks(0, 20))
    assert b"".join(block.text for block in blocks).decode() == text
    assert all(block.text.endswith(b"\n") for block in blocks[:-1])
    assert [block.first_line for block in blocks] == [
        1 + sum(before.text.count(b"\n") for before in blocks[:number]) for number in range(len(blocks))
    ]
    assert parsed(tmp_path, text, Kaggle("none"))["I1"].to_pylist() == list(range(20))


def test_gz_gives_the_same_rows_also_in_several_members(tmp_path):
    text = "".join(line(dense=(str(i),) * 13) + "\n" for i in range(50)).encode()
    plain = parsed(tmp_path, text)
    assert parsed(tmp_path, gzip.compress(text, mtime=0), name="log.gz").equals(plain)
    members = gzip.compress(text[:1000], mtime=0) + gzip.compress(text[1000:], mtime=0)
    assert parsed(tmp_path, members, name="log.gz").equals(plain)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(label="2"), "column label (1st): '2' is no label; allowed: 0 or 1"),
        (line(label=""), "column label (1st): '' is no label; allowed: 0 or 1"),
        (line(label="300"), "column label (1st): '300' is no label; allowed: 0 or 1"),
        (line(label=" 1"), "column label (1st): ' 1' is no label; allowed: 0 or 1"),
        (
            line(dense=("5", "5.5") + ("5",) * 11),
            "column I2 (3rd): '5.5' is no integer; allowed: an integer of at most",
        ),
        (line(dense=("0x1F",) + ("5",) * 12), "column I1 (2nd): '0x1F' is no integer; allowed: "),
        (line(dense=("+5",) + ("5",) * 12), "column I1 (2nd): '+5' is no integer; allowed: "),
        (line(dense=("9" * 19,) + ("5",) * 12), "column I1 (2nd): '9999999999999999999' is no integer; allowed: "),
        (line(dense=("5",) * 12 + ("five",)), "column I13 (14th): 'five' is no integer; allowed: "),
        (
            line(categories=("1", "2", "xyz") + ("4",) * 23),
            "column C3 (17th): 'xyz' is no hexadecimal number; allowed: ",
        ),
        (line(categories=("abcdef012",) + ("4",) * 25), "column C1 (15th): 'abcdef012' is no hexadecimal number"),
        (line(categories=('"ab"',) + ("4",) * 25), "column C1 (15th): '\"ab\"' is no hexadecimal number"),
        (line(categories=("4",) * 25 + ("é",)), r"column C26 (40th): '\xc3\xa9' is no hexadecimal number"),
        (line(categories=("4",) * 25 + ("4\0",)), r"column C26 (40th): '4\x00' is no hexadecimal number"),
        (line(categories=("f" * 100,) + ("4",) * 25), f"column C1 (15th): '{'f' * 56}... is no hexadecimal number"),
        (line(categories=("4",) * 25), "39 columns; allowed: 40, separated by tabs"),
        (line() + "\t", "41 columns; allowed: 40, separated by tabs"),
        (line() + "\r" + line(), "79 columns; allowed: 40, separated by tabs"),
        (line() + "\r\r", r"column C26 (40th): 'deadbeef\r' is no hexadecimal number"),
        (
            "\ufeff" + line(),
            "a byte-order mark before the row; allowed: rows alone, or on_bad_row skip, which ignores it",
        ),
        ("\t".join(NAMES), "a header line; allowed: rows alone, or on_bad_row skip, which leaves it out"),
        ("", "1 columns; allowed: 40, separated by tabs"),
    ],
)
@pytest.mark.parametrize("size", [500, 10**6])
def test_a_bad_kaggle_row_is_named_by_line_and_column(tmp_path, monkeypatch, bad, message, size):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", size)
    with pytest.raises(UserError) as caught:
        parsed(tmp_path, "\n".join([*[line()] * 6, bad, line(), line(label="x"), ""]))
    assert str(caught.value).startswith(f"{tmp_path}/log.txt:7: {message}")
    assert str(caught.value).endswith("; mend or remove the line") and "\n" not in str(caught.value)


def test_what_only_the_fast_path_refuses_is_named_with_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(Kaggle, "fault", lambda *_: None)
    with pytest.raises(UserError, match=re.escape("log.txt: lines 1 to 2: 1 good rows in 2 lines; allowed: ")):
        parsed(tmp_path, line() + "\n" + line(label="7") + "\n")


def slot_reference(text):
    rows = []
    for row in text.splitlines():
        tokens = [token.split(":") for token in row.split()]
        ids = {int(name): int(value) for name, value in tokens if name.isdigit()}
        rows.append(
            [int(value) for name, value in tokens if name == "click"]
            + [np.float32(value) for name, value in tokens if name == "dense_feature"]
            + [ids.get(slot, 0) for slot in range(1, 27)]
        )
    return rows


SLOT_ROWS = st.lists(
    st.tuples(
        st.sampled_from("01"),
        st.tuples(*[st.integers(-3000, 10**6).map(lambda x: repr(x / 1000))] * 13),
        st.dictionaries(st.integers(1, 26), st.integers(0, 1_000_000)).map(lambda slots: tuple(slots.items())),
    ),
    min_size=1,
    max_size=5,
)


@given(SLOT_ROWS, st.randoms(use_true_random=False), st.sampled_from(["\n", "\r\n", " \n"]), st.booleans())
def test_slot_rows_are_what_plain_python_reads(rows, random, end, mixed):
    lines = [slot_line(*row) for row in rows]
    if mixed:  # the order of the tokens does not matter, but for that among the dense ones
        shuffled = [row.split() for row in lines]
        for tokens in shuffled:
            places = [i for i, token in enumerate(tokens) if not token.startswith("dense")]
            others = [tokens[i] for i in places]
            random.shuffle(others)
            for place, token in zip(places, others, strict=True):
                tokens[place] = token
        lines = [" ".join(tokens) for tokens in shuffled]
    table = parse((end.join(lines) + end).encode(), Slot())
    assert table.column_names == NAMES
    assert table.schema.types == [pa.uint8()] + [pa.float32()] * 13 + [pa.int32()] * 26
    assert list(zip(*(column.to_pylist() for column in table.columns), strict=True)) == [
        tuple(row) for row in slot_reference("\n".join(lines))
    ]


def test_a_slot_row_as_published(tmp_path):
    text = (
        "click:1 dense_feature:0.0 dense_feature:0.932006633499 dense_feature:0.02 dense_feature:0.14 "
        "dense_feature:0.0395625 dense_feature:0.328 dense_feature:0.98 dense_feature:0.12 dense_feature:1.886 "
        "dense_feature:0.0 dense_feature:1.8 dense_feature:0.0 dense_feature:0.14 1:715353 2:761523 26:187951\n"
    )
    row = parsed(tmp_path, text, form=Slot()).to_pylist()[0]
    assert (row["label"], row["I2"], row["I9"]) == (1, np.float32(0.932006633499), np.float32(1.886))
    assert (row["C1"], row["C2"], row["C3"], row["C26"]) == (715353, 761523, 0, 187951)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            slot_line(label="2"),
            "token 1: 'click:2' is no feature; allowed: click:0, click:1, dense_feature:NUMBER, SLOT:ID",
        ),
        (slot_line(dense=("nan",) + ("1",) * 12), "token 2: 'dense_feature:nan' is no feature"),
        (slot_line(dense=("1e60",) + ("1",) * 12), "token 2: 'dense_feature:1e60' is no feature"),
        (slot_line(dense=("",) + ("1",) * 12), "token 2: 'dense_feature:' is no feature"),
        (slot_line(slots=[(27, 1)]), "token 15: '27:1' is no feature"),
        (slot_line(slots=[(0, 1)]), "token 15: '0:1' is no feature"),
        (slot_line(slots=[(1, 1_000_001)]), "token 15: '1:1000001' is no feature"),
        (slot_line(slots=[(1, -1)]), "token 15: '1:-1' is no feature"),
        (slot_line(slots=[(1, "0x1F")]), "token 15: '1:0x1F' is no feature"),
        (slot_line() + " 5", "token 17: '5' is no feature"),
        (slot_line() + " é:1", r"token 17: '\xc3\xa9:1' is no feature"),
        (slot_line(dense=("1",) * 12), "12 dense_feature tokens; allowed: exactly 13"),
        (slot_line(dense=("1",) * 14), "14 dense_feature tokens; allowed: exactly 13"),
        (slot_line() + " click:1", "2 click tokens; allowed: exactly 1"),
        ("", "0 click tokens; allowed: exactly 1"),
        (slot_line(slots=[(5, 1), (6, 1), (5, 2)]), "slot 5 has 2 ids; allowed: one id a slot"),
    ],
)
@pytest.mark.parametrize("size", [500, 10**6])
def test_a_bad_slot_row_is_named_by_line_and_token(tmp_path, monkeypatch, bad, message, size):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", size)
    with pytest.raises(UserError) as caught:
        parsed(tmp_path, "\n".join([*[slot_line()] * 6, bad, slot_line(), "x", ""]), form=Slot())
    assert str(caught.value).startswith(f"{tmp_path}/log.txt:7: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.txt", b"", "is empty"),
        ("log.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("log.gz", gzip.compress(line().encode() * 50, mtime=0)[:-20], "cannot be read beyond its first .* bytes"),
        ("log.gz", line().encode(), "cannot be read beyond its first 0 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/{name}: {message}"):
        source(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/none: no such file"):
        source(tmp_path / "none")


def test_a_file_without_lines_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "LINE_BYTES", 5000)
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 1000)
    (tmp_path / "log").write_bytes(line().encode() + b"\n" + b"\r" * 100_000)
    with pytest.raises(UserError, match=f"^{tmp_path}/log:2: line of more than 5000 bytes"):
        list(source(tmp_path / "log").blocks(0, 2))


@pytest.mark.parametrize("name", ["log", "log.gz"])
@pytest.mark.parametrize("size", [70, 500, 3000, 10**6])
def test_any_range_of_lines_is_read_in_pieces_within_the_bounds(tmp_path, monkeypatch, size, name):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", size)
    text = "".join(line(dense=(str(i),) * 13) + "\n" for i in range(30)).encode()
    (tmp_path / name).write_bytes(gzip.compress(text, mtime=0) if name.endswith("gz") else text)
    found = source(tmp_path / name, Kaggle("none"))
    for bounds in ([0, 30], [0, 1], [29, 30], [7, 8, 21], [3, 10, 11, 30]):
        at, seen = bounds[0], []
        for piece in found.read(bounds):
            stop = min(bound for bound in bounds if bound > at)
            assert at + piece.lines <= stop
            at += piece.lines
            seen += piece.table["I1"].to_pylist()
        assert seen == list(range(bounds[0], bounds[-1]))


@pytest.mark.parametrize(
    "change", [lambda text: text[: len(text) // 30 * 20], lambda text: text.replace(b"\n", b" ", 3)]
)
@pytest.mark.parametrize("size", [500, 10**6])
def test_a_file_that_changed_after_it_was_counted_is_named(tmp_path, monkeypatch, change, size):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", size)
    text = "".join(line() + "\n" for _ in range(30)).encode()
    (tmp_path / "log").write_bytes(text)
    found = source(tmp_path / "log")
    (tmp_path / "log").write_bytes(change(text))
    with pytest.raises(UserError, match="changed while it was read"):
        assert sum(piece.lines for piece in found.read([0, 30])) == 30, "changed while it was read"


def test_bad_rows_are_left_out_or_mended_wherever_the_text_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 1000)
    rows = [line(dense=(str(i) if i % 5 else "x", *["7"] * 12)) for i in range(1, 30)]
    (tmp_path / "log").write_text("\n".join(rows))
    for how, expected in (
        ("skip", [i for i in range(1, 30) if i % 5]),
        ("null", [i if i % 5 else 0 for i in range(1, 30)]),
    ):
        pieces = list(source(tmp_path / "log", Kaggle("none"), how).read([0, 29]))
        assert [x for piece in pieces for x in piece.table["I1"].to_pylist()] == expected
        assert sum(piece.faults["I1"] for piece in pieces if piece.faults) == 5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("on_bad_row", ["skip", "null"])
def test_a_byte_order_mark_is_ignored_and_a_header_line_left_out(tmp_path, on_bad_row, packed):
    for first, faults, rows in (
        ("\ufeff" + line(), {"byte-order mark": 1, BAD_ROWS: 1}, 2),
        ("\t".join(NAMES), {"header line": 1, BAD_ROWS: 1}, 1),
        ("\ufeff" + "\t".join(NAMES), {"byte-order mark": 1, "header line": 1, BAD_ROWS: 1}, 1),
    ):
        content = f"{first}\n{line()}\n".encode()
        path = tmp_path / ("log.gz" if packed else "log")
        path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
        (piece,) = source(path, Kaggle("none"), on_bad_row).read([0, 2])
        assert piece.table["I1"].to_pylist() == [5] * rows and piece.faults == faults


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_byte_order_mark_before_slots(tmp_path, on_bad_row):
    (tmp_path / "log").write_text(f"\ufeff{slot_line()}\n{slot_line()}\n")
    pieces = source(tmp_path / "log", Slot(), on_bad_row).read([0, 2])
    if on_bad_row == "skip":
        (piece,) = pieces
        assert piece.table.num_rows == 2 and piece.faults == {"byte-order mark": 1, BAD_ROWS: 1}
    else:
        with pytest.raises(UserError, match="log:1: a byte-order mark before the row"):
            list(pieces)


@pytest.mark.parametrize("form", [Kaggle(), Slot()])
def test_any_row_is_a_good_row(form):
    assert form.parse(form.any_row, 1).num_rows == 1 and form.fault(form.any_row[:-1]) is None

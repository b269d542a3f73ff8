"""Tables in the forms, encodings and separators in which they are exported."""

import json
import sys

import pytest
from harness import problem

from framework.data.table_file import read_table

CHINESE = "编号,所见\n1,乳腺腺体回声均匀，未见明显肿块。\n2,左侧乳腺低回声结节，边界清。\n"
GERMAN = "Nr;Befund\n1;Drüse homogen, keine Läsion.\n2;Herd außen, Größe 8 mm.\n"


@pytest.mark.parametrize(
    "text, encoding, expected",
    [
        *((CHINESE, encoding, encoding.removesuffix("-sig")) for encoding in ("utf-8", "utf-8-sig", "gb18030")),
        *((GERMAN, encoding, encoding) for encoding in ("utf-8", "cp1252")),
        *((text, "utf-16", "utf-16") for text in (CHINESE, GERMAN)),
        *((GERMAN, encoding, encoding) for encoding in ("utf-16-le", "utf-16-be")),
        (GERMAN.replace("8", "\x81"), "latin-1", "latin-1"),
        ("Nr;Größe\n1;Größe 8 mm.\n", "cp1252", "cp1252"),
        ("Nr;Échographie\n1;Sein gauche: nodule hypoéchogène, à 3 h.\n", "cp1252", "cp1252"),
        ("Nr,text\n1,left breast 左\n", "gb18030", "gb18030"),
    ],
)
def test_encoding_and_separator_are_found(tmp_path, text, encoding, expected):
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    table = read_table(tmp_path / "t.csv")
    header, *rows = [line.split(text[2]) for line in text.splitlines()]
    assert table.columns == header and [list(row.cells.values()) for row in table.rows] == rows
    assert table.form.startswith(f"encoding {expected},")


@pytest.mark.parametrize("name, sign", [("comma", ","), ("semicolon", ";"), ("tab", "\t"), ("bar", "|")])
def test_every_separator_is_found_among_texts_with_other_ones(tmp_path, name, sign):
    rows = [["image", "report"], ["a.png", '"Mass, 8 mm; round | smooth"'], ["b.png", '"No\nmass, none; clear"']]
    (tmp_path / "t.csv").write_text("\n".join(sign.join(row) for row in rows))
    table = read_table(tmp_path / "t.csv")
    assert table.columns == ["image", "report"] and table.form.endswith(name)
    assert [row.place for row in table.rows] == ["line 2", "line 3"]
    assert table.rows[1].cells["report"] == "No\nmass, none; clear"


def test_settings_outrank_what_is_found(tmp_path):
    (tmp_path / "t.csv").write_bytes("a;b\n1,2;3\n".encode("utf-16-le"))
    table = read_table(tmp_path / "t.csv", encoding="utf-16-le", separator="comma")
    assert table.columns == ["a;b"] and table.problems[0].place == "line 2"


def test_excels_line_of_the_separator_is_no_header(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\r\na;b\r\n1;2\r\n")
    table = read_table(tmp_path / "t.csv")
    assert (table.columns, table.rows) == (["a", "b"], [("line 3", {"a": "1", "b": "2"})])


def test_empty_rows_are_counted_and_rows_of_another_length_named_with_their_line(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n1,"2\n3"\n\n,\nNaN,NULL\n4\n5,6,7\n8,9,\n')
    table = read_table(tmp_path / "t.csv")
    assert [row.place for row in table.rows] == ["line 2", "line 9"] and table.empty == 3
    assert [error.place for error in table.problems] == ["line 7", "line 8"]


@pytest.mark.parametrize(
    "content, code, place",
    [
        (b'a,b\n1,"2\n3,4\n', "wrong-format", "t.csv:2"),
        (b"a,b\n", "wrong-format", "t.csv"),
        (b"", "wrong-format", "t.csv"),
        (b"a,a\n1,2\n", "duplicate-key", "t.csv"),
        (b"a,b\n1,\0\n", "unreadable-file", "t.csv"),
    ],
)
def test_a_malformed_text_is_refused(tmp_path, content, code, place):
    (tmp_path / "t.csv").write_bytes(content)
    with problem(code, place=place):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "name, settings, code, place",
    [
        ("t.csv", {"encoding": "utf-9"}, "unknown-name", "data.dataset.encoding"),
        ("t.csv", {"encoding": "ascii"}, "unreadable-file", "t.csv"),
        ("t.csv", {"encoding": "zip"}, "unreadable-file", "t.csv"),
        ("t.csv", {"sheet": "A"}, "ignored-setting", "data.dataset.sheet"),
        ("t.jsonl", {"separator": "tab"}, "ignored-setting", "data.dataset.separator"),
        ("t.json", {}, "wrong-format", "t.json"),
    ],
)
def test_a_setting_that_does_not_fit_the_file_is_refused(tmp_path, name, settings, code, place):
    (tmp_path / name).write_text("a,ä\n1,2\n", encoding="utf-8")
    with problem(code, place=place):
        read_table(tmp_path / name, **settings)


def test_json_lines_are_rows_of_objects(tmp_path):
    lines = [json.dumps({"image": ["a.png", "b.png"], "n": 17.0}), "", '{"image": ', "[1]", json.dumps({"report": "x"})]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    table = read_table(tmp_path / "t.jsonl")
    assert table.columns == ["image", "n", "report"]
    assert [row.place for row in table.rows] == ["line 1", "line 5"]
    assert [(error.code, error.place) for error in table.problems] == [
        ("wrong-format", "line 3"),
        ("wrong-type", "line 4"),
    ]


def test_a_sheet_of_a_workbook_is_read(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Befunde"
    for row in (["id", "report"], [17, "Mass."], [None, None], [18.0, None]):
        book.active.append(row)
    book.create_sheet("second").append(["other"])
    book["second"].append([1])
    book.save(tmp_path / "t.xlsx")
    table = read_table(tmp_path / "t.xlsx")
    assert [row.place for row in table.rows] == ["row 2", "row 4"] and table.empty == 1
    assert table.rows[0].cells == {"id": 17, "report": "Mass."} and "second" in table.form
    assert read_table(tmp_path / "t.xlsx", sheet="second").columns == ["other"]
    with problem("unknown-name", place="data.dataset.sheet"):
        read_table(tmp_path / "t.xlsx", sheet="third")


def test_parquet_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pyarrow.table({"id": [1.0, None], "image": [["a.png", "b.png"], ["c.png"]]}), tmp_path / "t.parquet"
    )
    table = read_table(tmp_path / "t.parquet")
    assert table.rows == [
        ("row 1", {"id": 1.0, "image": ["a.png", "b.png"]}),
        ("row 2", {"id": None, "image": ["c.png"]}),
    ]


@pytest.mark.parametrize("name, package", [("t.xlsx", "openpyxl"), ("t.parquet", "pyarrow")])
def test_a_file_of_another_form_is_refused(tmp_path, name, package):
    pytest.importorskip(package)
    (tmp_path / name).write_bytes(b"a,b\n1,2\n")
    with problem("unreadable-file", place=name):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name, package", [("t.xlsx", "openpyxl"), ("t.parquet", "pyarrow.parquet")])
def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, package.partition(".")[0], None)
    with problem("missing-package", place="data.dataset.file") as problems:
        read_table(tmp_path / name)
    assert "pip install 'sonoscribe[table]'" in problems[0].hint


def test_a_workbook_named_as_text_is_told_from_text(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    openpyxl.Workbook().save(tmp_path / "t.xlsx")
    (tmp_path / "t.xlsx").rename(tmp_path / "t.csv")
    with problem("unreadable-file", place="t.csv"):
        read_table(tmp_path / "t.csv")

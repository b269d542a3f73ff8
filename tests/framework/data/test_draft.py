"""Drafted recipes: what is found in tables as clinics have them."""

import csv
import json

import numpy as np
import pytest
import yaml
from harness import problem
from PIL import Image

from framework.data.draft import draft_recipe

RANDOM = np.random.default_rng(0)
TEXT = "The gland is homogeneous, mass number {}."


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, (10, 12), dtype=np.uint8)).save(path)


def save(file, rows, encoding="utf-8", delimiter=";"):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding=encoding, newline="") as opened:
        csv.writer(opened, delimiter=delimiter).writerows(rows)


def drafted(source):
    draft = draft_recipe(source)
    return draft, yaml.safe_load(draft.recipe)["data"]["dataset"]


def test_columns_are_found_by_content_and_by_name(tmp_path):
    rows = [["Nr", "Patient", "Ort", "Bild", "Befund"]]
    for n in range(20):
        for view in (1, 2):
            picture(tmp_path / "scans" / f"{n}_{view}.png")
            text = TEXT.format(n % 7) if view == 1 else ""
            rows.append([f"{n}.0", f"{n // 2}", "Köln", f"D:\\Export\\scans\\{n}_{view}.png", text])
    save(tmp_path / "Befunde.csv", [*rows, ["NaN"] * 5], encoding="cp1252")
    draft, dataset = drafted(tmp_path)
    assert dataset["columns"] == {"image": "Bild", "report": "Befund", "exam": "Nr", "patient": "Patient"}
    assert dataset["prefix"] == "D:/Export" and "images" not in dataset
    assert dataset["file"] == str(tmp_path / "Befunde.csv") and sum(dataset["shares"].values()) == pytest.approx(1)
    assert any("Ort" in each for each in draft.not_found)


def test_splits_are_taken_and_other_spellings_mapped(tmp_path):
    rows = [["检查号", "患者", "图像", "所见", "集合"]]
    for n, split in enumerate(["Train"] * 6 + ["dev"] * 2 + ["test"] * 2 + ["external"]):
        picture(tmp_path / "图像" / f"{n}.jpg")
        rows.append([f"E{n}", f"P{n}", f"{n}.jpg", f"乳腺腺体回声均匀，未见明显肿块，编号 {n}。", split])
    save(tmp_path / "表.csv", rows, encoding="gb18030", delimiter=",")
    draft, dataset = drafted(tmp_path / "表.csv")
    assert dataset["columns"]["split"] == "集合" and dataset["images"] == str(tmp_path / "图像")
    assert dataset["splits"] == {"Train": "train", "dev": "val", "external": None}
    assert dataset["columns"]["exam"] == "检查号" and dataset["columns"]["patient"] == "患者"
    assert any("left out" in how for _, how in draft.assumed)


def test_several_columns_of_images_and_no_ids(tmp_path):
    rows = [["left", "right", "text"]]
    for n in range(8):
        for side in "lr":
            picture(tmp_path / "i" / f"{n}{side}.png")
        rows.append([f"i/{n}l.png", f"i/{n}r.png", TEXT.format(n)])
    save(tmp_path / "deep" / "t.csv", rows)
    draft, dataset = drafted(tmp_path)
    assert dataset["columns"] == {"image": ["left", "right"], "report": "text"} and dataset["images"] == str(tmp_path)
    assert sum("patient" in each or "exam" in each for each in draft.not_found) == 2


def test_lists_of_images_in_json_lines(tmp_path):
    for n in range(8):
        picture(tmp_path / f"{n}.png")
    lines = [json.dumps({"id": n, "image": [f"{n}.png"], "report": TEXT.format(n)}) for n in range(8)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert drafted(tmp_path)[1]["columns"] == {"image": "image", "report": "report", "exam": "id"}


def test_the_table_with_images_is_taken_of_several(tmp_path):
    picture(tmp_path / "1.png")
    save(tmp_path / "a.csv", [["name", "note"], ["x", TEXT]])
    save(tmp_path / "b.csv", [["file", "note"], ["1.png", TEXT]])
    assert drafted(tmp_path)[1]["file"] == str(tmp_path / "b.csv")


def test_what_is_missing_is_named(tmp_path):
    with problem("no-such-file", place="nowhere"):
        draft_recipe(tmp_path / "nowhere")
    (tmp_path / "exams.json").write_text("{}")
    with problem("no-such-file", place=str(tmp_path)) as problems:
        draft_recipe(tmp_path)
    assert "manifest" in problems[0].hint
    save(tmp_path / "a.csv", [["file", "note"], ["1.png", TEXT]])
    with problem("no-such-file", place="a.csv") as problems:
        draft_recipe(tmp_path)
    assert "file (1.png)" in problems[0].found
    picture(tmp_path / "1.png")
    save(tmp_path / "a.csv", [["file", "n"], ["1.png", "17"]])
    with problem("empty-report", place="a.csv"):
        draft_recipe(tmp_path)

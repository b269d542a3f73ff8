"""The manifest data set, image files as views, and the check of data."""

import json
import os
import pickle

import numpy as np
import pytest
from harness import problem
from PIL import Image

from framework.data.check import CheckResult, check
from framework.data.image_file import FileView, inside
from framework.exam import Exam
from plugins.dataset.manifest import Manifest

RANDOM = np.random.default_rng(0)


def picture(path, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, size[::-1], dtype=np.uint8)).save(path)


def entries(split, first, count=2):
    return [
        {
            "uid": first + n,
            "finding": f"Report {first + n}.",
            "image_path": [f"{first + n}_1.png", f"{first + n}_2.png"],
        }
        for n in range(count)
    ]


@pytest.fixture
def listed(tmp_path):
    """A manifest that is fine, to be spoilt, and the function that saves it and gives the data set."""
    found = {"train": entries("train", 1), "val": entries("val", 11), "test": entries("test", 21)}
    for exams in found.values():
        for exam in exams:
            for name in exam["image_path"]:
                picture(tmp_path / "images" / name)

    def save(encoding="utf-8", **settings):
        (tmp_path / "exams.json").write_text(json.dumps(found, ensure_ascii=False), encoding=encoding)
        return Manifest(file=str(tmp_path / "exams.json"), images=str(tmp_path / "images"), **settings)

    return found, save


def test_published_format_with_byte_order_mark_is_read(listed):
    found, save = listed
    found["train"][0] |= {"finding": "腺体回声均匀。", "labels": 4, "split": "train"}
    splits = save("utf-8-sig").splits()
    exam = splits["train"][0]
    assert (exam.id, exam.patient, exam.report, exam.attributes) == ("1", "1", "腺体回声均匀。", {"labels": 4})
    assert [view.name for view in exam.views] == ["1_1.png", "1_2.png"]
    assert exam.views[0].load().shape == (10, 12)
    assert {split: len(exams) for split, exams in splits.items()} == {"train": 2, "val": 2, "test": 2}


def test_words_of_r2gen_and_one_view_as_text_are_read(listed):
    found, save = listed
    found["val"][0] = {"id": "CXR7", "report": "Clear.", "image_path": "11_1.png", "patient": "p"}
    exam = save().splits()["val"][0]
    assert (exam.id, exam.patient, exam.report, len(exam.views)) == ("CXR7", "p", "Clear.", 1)


def test_another_key_may_hold_the_report(listed):
    found, save = listed
    for exams in found.values():
        for exam in exams:
            exam["text"] = "Other words."
    assert save(report_key="text").splits()["test"][1].report == "Other words."


def test_all_bad_exams_are_named_at_once(listed):
    found, save = listed
    found["train"][0]["image_path"] = ["gone.png"]
    found["train"][1]["finding"] = "  "
    found["val"][0]["image_path"] = []
    found["test"][0] = {"finding": "No id.", "image_path": "x.png"}
    found["test"][1]["split"] = "train"
    with problem("no-such-file", place="exam 1") as problems:
        save().splits()
    assert [(each.code, each.place.rpartition(", ")[2]) for each in problems] == [
        ("no-such-file", "exam 1"),
        ("empty-report", "exam 2"),
        ("wrong-type", "exam 11"),
        ("missing-key", "exam number 1 of test"),
        ("conflicting-settings", "exam 22"),
    ]


def test_a_long_list_of_problems_is_cut_and_counted(listed):
    found, save = listed
    found["train"] = [{"uid": 100 + n, "finding": "A.", "image_path": "no.png"} for n in range(50)]
    with problem("no-such-file", place="exam 100") as problems:
        save().splits()
    assert len(problems) == 21 and problems[-1].found == "30 more problems"


@pytest.mark.parametrize(
    "path", ["../exams.json", "/etc/passwd", "a/../../exams.json", "..\\exams.json", "C:\\x.png", ""]
)
def test_paths_may_not_leave_the_folder_of_images(listed, path):
    found, save = listed
    found["train"][0]["image_path"] = [path]
    with problem("no-such-file", place="exam 1"):
        save().splits()


def test_links_may_not_leave_the_folder_of_images(listed, tmp_path):
    found, save = listed
    picture(tmp_path / "secret.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    found["train"][0]["image_path"] = "link.png"
    with problem("no-such-file", place="exam 1") as problems:
        save().splits()
    assert "symbolic link" in problems[0].found
    assert inside(tmp_path, "images/1_1.png") == (tmp_path / "images" / "1_1.png").resolve()


def test_ids_and_patients_that_splits_share_are_an_error(listed):
    found, save = listed
    found["test"][0]["uid"] = 1
    found["test"][1]["patient"] = "p"
    found["train"][1]["patient"] = "p"
    with problem("duplicate-id", place="exam 1") as problems:
        save().splits()
    assert ("split-leak", "exam 22") in [(each.code, each.place.rpartition(", ")[2]) for each in problems]


@pytest.mark.parametrize(
    "text, code, place",
    [
        ('{"train": [\n  {"uid": 1,, }', "wrong-format", "exams.json:2:13"),
        ("1", "wrong-type", "exams.json"),
        ("[1]", "missing-key", "exams.json"),
        ('[{"uid": 1}]', "missing-key", "exams.json"),
        ('{"train": [1], "vall": [1], "test": [1]}', "missing-key", "exams.json"),
        ('{"train": [1], "val": [1], "valid": [1], "test": [1]}', "conflicting-settings", "exams.json"),
        ('{"train": [1], "val": [], "test": [1]}', "empty-split", "exams.json"),
        ('{"train": [1], "train": [2], "val": [1], "test": [1]}', "duplicate-key", "exams.json"),
        ('{"train": [3], "val": [[]], "test": [null]}', "wrong-type", "exam number 1 of val"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, code, place):
    (tmp_path / "exams.json").write_text(text)
    with problem(code, place=place):
        Manifest(file=str(tmp_path / "exams.json"), images=str(tmp_path)).splits()


def test_a_missing_file_and_another_encoding_are_refused(tmp_path):
    with problem("no-such-file", place="none.json") as problems:
        Manifest(file=str(tmp_path / "none.json"), images=str(tmp_path), get_from="our clinic").splits()
    assert "our clinic" in problems[0].hint and "recipes/breast" in problems[0].hint
    (tmp_path / "exams.json").write_bytes('{"train": "腺"}'.encode("gbk"))
    with problem("unreadable-file", place="exams.json"):
        Manifest(file=str(tmp_path / "exams.json"), images=str(tmp_path)).splits()


def test_cache_key_follows_the_images(listed, tmp_path):
    _, save = listed
    before = save().cache_key
    assert save().cache_key == before
    os.utime(tmp_path / "images" / "21_2.png", (1, 1))
    assert save().cache_key != before


def test_views_cross_to_another_process(listed):
    _, save = listed
    view = save().splits()["train"][0].views[0]
    assert np.array_equal(pickle.loads(pickle.dumps(view)).load(), view.load())


@pytest.mark.parametrize(
    "mode, shape, value",
    [("1", (4, 6), 255), ("L", (4, 6), 200), ("LA", (4, 6), 200), ("RGB", (4, 6, 3), 200), ("P", (4, 6, 3), 200)],
)
def test_modes_of_files_become_grey_or_colour(tmp_path, mode, shape, value):
    Image.new("L", (6, 4), 200).convert(mode).save(tmp_path / "a.png")
    image = FileView(str(tmp_path / "a.png"), "a").load()
    assert image.dtype == np.uint8 and image.shape == shape
    if mode != "1":  # dithered
        assert (image == value).all()


def test_sixteen_bits_keep_their_range(tmp_path):
    Image.fromarray(np.array([[0, 65535], [257, 514]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert FileView(str(tmp_path / "a.png"), "a").load().tolist() == [[0, 255], [1, 2]]


@pytest.mark.parametrize("suffix", [".png", ".jpeg"])
def test_a_file_cut_short_says_so(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    picture(path, (200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match="damaged or truncated"):
        FileView(str(path), "a").load()


def test_other_files_and_huge_images_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(OSError, match="not an image"):
        FileView(str(tmp_path / "a.png"), "a").load()
    Image.new("1", (40000, 3000)).save(tmp_path / "b.png")
    with pytest.raises(OSError, match="40000 x 3000 pixels"):
        FileView(str(tmp_path / "b.png"), "b").load()
    Image.new("1", (40000, 6000)).save(tmp_path / "c.png")
    with pytest.raises(OSError, match="pixels; not decoded"):
        FileView(str(tmp_path / "c.png"), "c").load()
    with pytest.raises(FileNotFoundError, match="no such file"):
        FileView(str(tmp_path / "d.png"), "d").load()


class Source:
    """Exams as given."""

    cache_key = "test"

    def __init__(self, **splits):
        self.given = splits

    def splits(self):
        return self.given


def exam(tmp_path, exam_id, *, patient=None, report="Text.", picture_of=None):
    path = tmp_path / f"{picture_of or exam_id}.png"
    if not path.exists():
        picture(path)
    return Exam(exam_id, patient or exam_id, (FileView(str(path), path.name),), report)


def test_good_data_have_no_problem_and_progress_counts_to_the_end(tmp_path):
    seen = []
    source = Source(**{split: [exam(tmp_path, f"{split}{n}") for n in range(2)] for split in ("train", "val", "test")})
    assert check(source, lambda done, total: seen.append((done, total))) == CheckResult()
    assert seen == [(n, 6) for n in range(1, 7)]


def test_check_lists_every_problem_at_once(tmp_path):
    broken = exam(tmp_path, "broken")
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("L", (5, 5)).save(tmp_path / "blank.png")
    source = Source(
        train=[exam(tmp_path, "a"), exam(tmp_path, "b", report=" "), exam(tmp_path, "a"), exam(tmp_path, "blank")],
        val=[broken, exam(tmp_path, "c", patient="b"), Exam("empty", "empty", (), "Text.")],
        test=[exam(tmp_path, "d", picture_of="a")],
    )
    result = check(source)
    assert {(problem.place, problem.code) for problem in result.errors} == {
        ("exam a", "duplicate-id"),
        ("exam b", "empty-report"),
        ("exam broken", "broken-image"),
        ("exam c", "split-leak"),
        ("exam empty", "broken-image"),
    }
    assert {(problem.place, problem.code) for problem in result.warnings} == {
        ("exam blank", "suspicious-image"),
        ("exam d", "suspicious-image"),
    }
    assert "view a.png of exam a in train" in result.warnings[-1].found


def test_check_names_missing_and_unknown_splits(tmp_path):
    result = check(Source(train=[exam(tmp_path, "a")], valid=[exam(tmp_path, "b")]))
    assert [(p.code, p.place) for p in result.errors] == [("empty-split", "split val"), ("empty-split", "split test")]
    assert [(p.code, p.place) for p in result.warnings] == [("unused-split", "split valid")]


@pytest.mark.parametrize("lines", [False, True], ids=["a list", "json lines"])
def test_a_flat_list_in_other_words_is_read_by_its_keys(tmp_path, lines):
    splits = {"train": "train", "validate": "val", "test": "test"}
    exams = [
        {"study": f"s{n}", "subject": f"p{n}", "text": f"Report {n}.", "files": f"{n}.png", "part": part}
        for n, part in enumerate(splits)
    ]
    for exam in exams:
        picture(tmp_path / "images" / exam["files"])
    file = tmp_path / ("exams.jsonl" if lines else "exams.json")
    file.write_text("\n".join(map(json.dumps, exams)) + "\n" if lines else json.dumps(exams))
    keys = {
        "id_key": "study",
        "report_key": "text",
        "images_key": "files",
        "patient_key": "subject",
        "split_key": "part",
    }
    found = Manifest(file=str(file), images=str(tmp_path / "images"), **keys).splits()
    assert {split: [(e.id, e.patient, e.report, e.views[0].name) for e in exams] for split, exams in found.items()} == {
        split: [(f"s{n}", f"p{n}", f"Report {n}.", f"{n}.png")] for n, split in enumerate(splits.values())
    }


def test_a_mistake_in_json_lines_names_its_line(tmp_path):
    (tmp_path / "exams.jsonl").write_text('{"uid": 1, "split": "train"}\n\n{"uid": 2,}\n')
    with problem("wrong-format", place="exams.jsonl:3:11"):
        Manifest(file=str(tmp_path / "exams.jsonl"), images=str(tmp_path)).splits()


def test_a_report_under_another_key_is_guessed_at(listed):
    found, save = listed
    found["train"][0]["findigs"] = found["train"][0].pop("finding")
    with problem("missing-key", place="exam 1") as problems:
        save().splits()
    assert "Did you mean 'findigs'?" in str(problems[0])

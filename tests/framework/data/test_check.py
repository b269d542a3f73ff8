"""The problems that a check of a data set lists."""

import numpy as np
from harness import problem
from PIL import Image

from framework.build import load_exams
from framework.data.check import CheckResult, check
from framework.data.image_file import FileView
from framework.exam import Exam

RANDOM = np.random.default_rng(0)


def picture(path, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, size[::-1], dtype=np.uint8)).save(path)


class Source:
    """A data set of these exams."""

    cache_key = "test"

    def __init__(self, **exams):
        self.exams = exams

    def splits(self):
        return self.exams


def exam(tmp_path, exam_id, *, patient=None, report="Text.", picture_of=None):
    path = tmp_path / f"{picture_of or exam_id}.png"
    if not path.exists():
        picture(path)
    return Exam(exam_id, patient or exam_id, (FileView(str(path), path.name),), report)


def test_valid_data_have_no_problem_and_progress_reaches_the_end(tmp_path):
    seen = []
    splits = ("train", "val", "test")
    source = Source(
        **{name: [exam(tmp_path, f"{name}{n}", report=f"{name} {n}.") for n in range(2)] for name in splits}
    )
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


def test_reports_that_occur_in_training_are_counted(tmp_path):
    texts = {"train": ["A cyst.", "A mass.", "A cyst."], "val": ["A scar."], "test": ["A cyst.", "A mass.", "A duct."]}
    splits = {
        name: [exam(tmp_path, f"{name}{n}", report=text) for n, text in enumerate(some)] for name, some in texts.items()
    }
    assert check(Source(**splits)).notices == ["2 of 3 reports of split test occur word for word in split train"]


def test_check_names_missing_and_unknown_splits(tmp_path):
    result = check(Source(train=[exam(tmp_path, "a")], valid=[exam(tmp_path, "b")]))
    assert [(p.code, p.place) for p in result.errors] == [("empty-split", "split val"), ("empty-split", "split test")]
    assert [(p.code, p.place) for p in result.warnings] == [("unused-split", "split valid")]
    assert "1 exam" in result.warnings[0].found and "'val'" in result.warnings[0].hint


def test_a_run_names_a_split_that_is_never_used_and_leaves_it_out(tmp_path, capsys):
    splits = {name: [exam(tmp_path, name)] for name in ("train", "val", "test")}
    splits["external"] = [exam(tmp_path, "train"), exam(tmp_path, "val")]  # which may hold anybody
    assert set(load_exams(Source(**splits))) == {"train", "val", "test"}
    assert "2 exams" in (out := capsys.readouterr().out) and "[unused-split]" in out
    result = check(Source(**splits))
    assert not result.errors and [p.code for p in result.warnings] == ["unused-split"]


def test_a_patient_in_two_splits_is_refused_and_all_problems_are_listed() -> None:
    class Leaky:
        cache_key = "k"

        def splits(self) -> dict[str, list[Exam]]:
            one, two, three = (Exam(f"e{n}", f"p{n}", (), "text") for n in (1, 2, 1))
            return {"train": [one], "val": [two], "test": [three, Exam("e9", "p2", (), "text")]}

    with problem("split-leak") as found:
        load_exams(Leaky())
    assert [(each.code, each.place) for each in found] == [
        ("duplicate-id", "exam e1"),
        ("split-leak", "exam e1"),
        ("split-leak", "exam e9"),
    ]

"""METEOR: errors if its program is missing or fails, its input, and (long) the scores of its wrapper."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import problem
from pairs import pair

from framework.scoring import dependencies
from plugins.metric import meteor
from plugins.metric.meteor import COUNTS, Meteor

ENGLISH = [
    "An oval hypoechoic mass is seen in the left breast, with well-defined margins.",
    "No focal lesion is seen. The glandular tissue is homogeneous.",
    "The thyroid is normal in size. A 1.8 x 0.7 cm nodule was identified in the right lobe.",
]
PREDICTED = [
    ("The glandular tissue is homogeneous; no focal lesions are seen.", ENGLISH[1]),
    ("An oval hypoechoic tumor in the left breast has defined margins", ENGLISH[0]),
    (ENGLISH[2], ENGLISH[2]),
    ("", ENGLISH[0]),
    ("cyst", ENGLISH[2]),
    ("A nodule is found\nin the right lobe\r\n||| the thyroid has normal size.", ENGLISH[2]),
]
# Answers as the program does: as many words of content as there are in both texts, nothing else.
PROGRAM = f"""#!{sys.executable}
import sys
if "-version" in sys.argv:
    sys.exit(0)
import time
log = open(sys.argv[sys.argv.index("-jar") + 1] + ".log", "a")
for line in sys.stdin:
    log.write(line)
    log.flush()
    kind, true, predicted = (part.split() for part in line.split("|||"))
    if predicted == ["stop"]:
        sys.exit("out of memory")
    if predicted == ["hang"]:
        time.sleep(60)
    both = len(set(predicted) & set(true))
    counts = [len(predicted), len(true), 0, 0, both, both] + [0] * 14 + [both, both, both]
    print(*(map(float, counts) if predicted != ["babble"] else ["what?"]), flush=True)
"""


@pytest.fixture
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake java program, and a fake package with its jar."""
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(PROGRAM, encoding="utf-8")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(java.parent))
    found = tmp_path / "package" / meteor.JAR
    found.parent.mkdir(parents=True)
    found.touch()
    monkeypatch.setattr(meteor, "package_folder", lambda *_: tmp_path / "package")
    return found


def test_each_pair_is_sent_as_one_line(jar: Path) -> None:
    metric = Meteor(language="en")
    metric([pair(0, "a\nmass\r\n||| seen\u2028there |||", "a \n mass")])
    assert (jar.parent / f"{jar.name}.log").read_text(encoding="utf-8") == "SCORE ||| a mass ||| a mass seen there\n"


def test_a_pair_is_scored_once(jar: Path) -> None:
    metric, pairs = Meteor(language="en"), [pair(0, "a mass", "the mass"), pair(1, "a mass", "the mass")]
    assert metric(pairs) == metric(pairs)
    assert len((jar.parent / f"{jar.name}.log").read_text(encoding="utf-8").splitlines()) == 1


def test_the_program_starts_at_the_first_report_and_ends_with_the_metric(jar: Path) -> None:
    metric = Meteor(language="en")
    assert metric._program is None
    metric([pair(0, "a mass", "the mass")])
    process = metric._program._process
    assert process.poll() is None
    del metric
    assert process.poll() is not None
    assert process.stdin.closed and process.stdout.closed


@pytest.mark.parametrize(("text", "output"), [("stop", "out of memory"), ("babble", "what?")])
def test_an_error_of_the_program_has_its_last_output(jar: Path, text: str, output: str) -> None:
    with problem("external-program", place="metric meteor") as found:
        Meteor(language="en")([pair(0, text, "a mass")])
    assert f"({output})" in found[0].found


def test_a_program_that_hangs_is_killed_and_reported(jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor, "ANSWER_S", 1)
    metric = Meteor(language="en")
    with problem("external-program", place="metric meteor"):
        metric([pair(0, "hang", "a mass")])
    assert metric._program is not None and metric._program._process.wait(5) != 0


def test_a_java_that_hangs_or_does_not_start_is_refused(jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = Path(shutil.which("java") or "")
    monkeypatch.setattr(meteor, "START_S", 0.5)
    java.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n", encoding="utf-8")
    with problem("external-program", place="metric meteor"):
        Meteor(language="en")
    java.write_text("no program at all", encoding="utf-8")
    with problem("external-program", place="metric meteor"):
        Meteor(language="en")


def test_a_missing_java_is_refused_before_training(jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(jar.parent))
    with problem("missing-package", place="metric meteor"):
        Meteor(language="en")


def test_a_java_that_does_not_run_is_refused(jar: Path) -> None:
    java = Path(shutil.which("java") or "")
    java.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('No Java runtime present')\n", encoding="utf-8")
    with problem("external-program", place="metric meteor"):
        Meteor(language="en")


def test_a_missing_package_or_jar_is_refused(jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar.unlink()
    with problem("missing-package", place="metric meteor"):
        Meteor(language="en")
    monkeypatch.setattr(meteor, "package_folder", dependencies.package_folder)
    monkeypatch.setattr(dependencies.importlib.util, "find_spec", lambda _: None)
    with problem("missing-package", "metric meteor"):
        Meteor(language="en")


def test_chinese_reports_are_refused() -> None:
    with problem("unsupported", "metric meteor"):
        Meteor(language="zh")


def test_no_pairs_and_empty_references_are_refused_and_empty_predictions_give_a_warning(jar: Path) -> None:
    metric = Meteor(language="en")
    with problem("empty-split"):
        metric([])
    with problem("empty-report", place="exam 5"):
        metric([pair(5, "a mass", "|||")])
    # word for word
    with pytest.warns(UserWarning, match="METEOR: 1 of 2 predictions are empty"):
        assert 0 < metric([pair(0, "", "a mass"), pair(1, "a mass", "a mass")])["meteor"] < 1


def test_counts_of_0_give_score_0(jar: Path) -> None:
    assert Meteor(language="en").compute(np.zeros((2, COUNTS)))["meteor"].tolist() == [0, 0]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:METEOR")
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_meteor_equals_the_wrapper_of_pycocoevalcap() -> None:
    from pycocoevalcap.meteor.meteor import Meteor as Theirs

    theirs, metric = Theirs(), Meteor(language="en")
    pairs = [pair(number, *each) for number, each in enumerate(PREDICTED)]
    for some in (pairs, pairs[:1], pairs[2:4], pairs[1:]):
        # The wrapper's pipe breaks on a newline, so that it gets the text on one line.
        true = {each.exam_id: [each.reference] for each in some}
        predicted = {each.exam_id: [" ".join(each.prediction.replace("|||", " ").split())] for each in some}
        whole, each_alone = theirs.compute_score(true, predicted)
        assert metric(some)["meteor"] == pytest.approx(whole, abs=1e-9)
        assert metric.compute(metric.per_exam_stats(some))["meteor"] == pytest.approx(each_alone, abs=1e-9)

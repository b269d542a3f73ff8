"""RaTEScore and RadEval, with fakes in place of the packages, which the tests do not install."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from harness import problem
from pairs import pair
from tiny_bert import save_tiny_bert

from plugins.metric.radeval import RadEval
from plugins.metric.ratescore import RateScore

PAIRS = [pair(0, "a mass", "a mass"), pair(1, " .", "no mass"), pair(2, "no cyst", "no mass")]


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, what in (("RaTEScore", stand_ins.RaTEScore), ("radeval", stand_ins.RadEval)):
        monkeypatch.setitem(sys.modules, name, None)  # so that it is put back
        stand_ins.put_in_place(name, what)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_bert(tmp_path_factory.mktemp("bert") / "model"))


@pytest.fixture
def ratescore(folder: str) -> RateScore:
    return RateScore(language="en", recognizer=folder, synonyms=folder)


def test_empty_reports_score_0_and_do_not_change_other_scores(ratescore: RateScore) -> None:
    assert ratescore.per_exam_stats(PAIRS).tolist() == [[1, 1], [0, 1], [0.5, 1]]
    assert ratescore(PAIRS) == {"ratescore": 0.5}


def test_a_text_without_an_entity_scores_what_the_package_gives_it(ratescore: RateScore) -> None:
    assert ratescore.per_exam_stats([pair(0, "There is.", "a mass"), pair(1, "a mass", "is seen")])[:, 0].tolist() == [
        0.5,
        0.5,
    ]


def test_radeval_gives_the_requested_score_and_its_parts() -> None:
    found = RadEval(language="en")(PAIRS)
    assert found == pytest.approx(
        {
            "radeval": 0.5,
            "radeval/radgraph_partial": 0.5,
            "radeval/radgraph_simple": (1 + 0.55) / 3,
            "radeval/radgraph_complete": 0.45,
        }
    )
    assert RadEval(language="en", score="radeval_bertscore")(PAIRS)["radeval"] == 0.5


def test_radeval_does_not_silence_the_warnings_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silencing(stand_ins.RadEval):
        def __init__(self, *args: Any, **keys: Any) -> None:
            warnings.filterwarnings("ignore", message="while it is made")
            super().__init__(*args, **keys)

        def __call__(self, *args: Any, **keys: Any) -> dict[str, Any]:
            warnings.filterwarnings("ignore", message="while it scores")
            return super().__call__(*args, **keys)

    monkeypatch.setattr(sys.modules["radeval"], "RadEval", Silencing)
    before = list(warnings.filters)
    RadEval(language="en")(PAIRS)
    assert warnings.filters == before


def test_the_last_scores_are_cached(ratescore: RateScore, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [*PAIRS[:2], pair(2, "no mass", "no mass")]
    asked: list[list[str]] = []

    class Counting(stand_ins.RadEval):
        def __call__(self, refs: list[str], hyps: list[str]) -> dict[str, Any]:
            asked.append(hyps)
            return super().__call__(refs, hyps)

    def compute_score(predicted: list[str], true: list[str]) -> list[float]:
        asked.append(predicted)
        return stand_ins.RaTEScore.compute_score(ratescore._scorer, predicted, true)

    monkeypatch.setattr(sys.modules["radeval"], "RadEval", Counting)
    monkeypatch.setattr(ratescore._scorer, "compute_score", compute_score)
    for metric in (RadEval(language="en"), ratescore):
        asked.clear()
        rows = metric.per_exam_stats(PAIRS)
        rows += 1  # a caller may change them in place
        assert metric(PAIRS)[metric.names[0]] == 0.5
        assert metric(others)[metric.names[0]] == pytest.approx(2 / 3)
        assert asked == [["a mass", "no cyst"], ["a mass", "no mass"]]


def both(folder: str) -> list[Callable[..., Any]]:
    return [RadEval, lambda **keys: RateScore(recognizer=folder, synonyms=folder, **keys)]


def test_another_language_is_refused_when_the_metric_is_built(folder: str) -> None:
    for make in both(folder):
        with problem("unsupported", "metric "):
            make(language="zh")


def test_a_missing_package_names_what_to_install(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RaTEScore", "radeval"):
        monkeypatch.setitem(sys.modules, name, None)
    for make, extra in zip(both(folder), ("radeval", "ratescore")):
        with problem("missing-package", "metric ") as found:
            make(language="en")
        assert f"pip install 'sonoscribe[{extra}]'" in found[0].hint


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, ValueError])
def test_a_package_that_fails_to_import_is_refused_like_a_missing_one(
    error: type[Exception], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = f"raise {error.__name__}('libfoo.so: no such file\\nand more')\n"
    for name in ("RaTEScore", "radeval"):
        monkeypatch.delitem(sys.modules, name)
        (tmp_path / f"{name}.py").write_text(broken, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for make in both(folder):
        with problem("missing-package", "metric ") as found:
            make(language="en")
        assert found[0].found.endswith("libfoo.so: no such file")


def test_models_that_ratescore_cannot_build_are_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**keys: Any) -> None:
        raise RuntimeError("size mismatch\nfor classifier")

    monkeypatch.setattr(sys.modules["RaTEScore"], "RaTEScore", broken)
    with problem("external-program", place="metric ratescore"):
        RateScore(language="en", recognizer=folder, synonyms=folder)


def test_models_that_are_not_safetensors_are_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with problem("no-such-file", place="metric ratescore.synonyms"):
        RateScore(language="en", recognizer=folder, synonyms=str(tmp_path))


def test_a_model_that_radeval_cannot_download_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**keys: Any) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(sys.modules["radeval"], "RadEval", offline)
    with problem("external-program", place="metric radeval"):
        RadEval(language="en")


def test_scores_of_another_version_are_refused(ratescore: RateScore, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in ([0.5], [[0.5], [0.5]], [0.5, float("nan")]):
        monkeypatch.setattr(ratescore._scorer, "compute_score", lambda *_, answer=answer: answer)
        with problem("non-finite", "metric ratescore"):
            ratescore(PAIRS)


def test_no_reports_and_references_without_words_are_errors(ratescore: RateScore) -> None:
    for metric in (ratescore, RadEval(language="en")):
        with problem("empty-split"):
            metric([])
        with problem("empty-report", "exam 4"):
            metric([pair(4, "a mass", "...")])

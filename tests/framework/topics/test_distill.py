import json
import logging
import re
import unicodedata

import numpy as np
import pytest
from harness import problem
from PIL import Image

from framework.text.lsa import ReportSpace
from framework.topics import distill as distill_module
from framework.topics import plot
from framework.topics.count import TopicChoice
from framework.topics.distill import Topics, distill
from framework.topics.quality import SAMPLE, describe_topics, distinct_reports, silhouettes_of, topic_quality

TEXTS = {
    "train": ["oval mass left", "oval mass right", "oval mass left", "cyst seen", "large cyst seen", "no lesion"],
    "val": ["cyst left"],
    "test": ["mass"],
}


class ByFirstWord:
    """A distiller of two topics: does a report speak of a mass?"""

    topic_count = 2

    def __init__(self) -> None:
        self.fits = 0
        self.space = None

    def fit(self, texts):
        self.fits += 1
        self.texts = texts
        self.space = ReportSpace(2, 0).fit([text.split() for text in texts])

    def assign(self, texts):
        labels = np.array([int("mass" not in text) for text in texts], dtype=np.int64)
        return labels, np.eye(2, dtype=np.float32)[labels]

    def positions(self, texts):
        return self.space.embed([text.split() for text in texts])

    def describe(self):
        return describe_topics(self.texts, [text.split() for text in self.texts], *self.assign(self.texts))

    def quality(self):
        labels = self.assign(self.texts)[0]
        return topic_quality(self.texts, self.positions(self.texts), labels, lambda places, seed: labels[places], 0)


def same(one: Topics, two: Topics) -> bool:
    return (
        all(np.array_equal(one.labels[s], two.labels[s]) and one.labels[s].dtype == two.labels[s].dtype for s in TEXTS)
        and all(np.array_equal(one.weights[s], two.weights[s]) for s in TEXTS)
        and np.array_equal(one.space.vectors_WD, two.space.vectors_WD)
        and np.array_equal(one.shown, two.shown)
        and np.array_equal(one.positions, two.positions)
        and one.space.words == two.space.words
        and (one.count, one.words, one.sizes, one.examples, one.quality)
        == (two.count, two.words, two.sizes, two.examples, two.quality)
    )


def test_a_second_run_reads_the_topics_of_the_first(tmp_path):
    first, second = ByFirstWord(), ByFirstWord()
    found = distill(first, TEXTS, None, tmp_path, "a")
    assert same(found, distill(second, TEXTS, None, tmp_path, "a"))
    assert (first.fits, second.fits) == (1, 0)
    assert found.labels["train"].tolist() == [0, 0, 0, 1, 1, 1] and found.labels["val"].tolist() == [1]
    assert found.sizes == [3, 3] and found.words[0][0] in ("oval", "mass") and found.quality["reports_different"] == 5


def test_topics_are_fitted_on_the_training_reports_only(tmp_path):
    distiller = ByFirstWord()
    distill(distiller, TEXTS, None, tmp_path, "a")
    assert distiller.texts == TEXTS["train"]


@pytest.mark.parametrize("change", ["key", "train", "val"])
def test_another_key_or_text_is_computed_again(tmp_path, change):
    distill(ByFirstWord(), TEXTS, None, tmp_path, "a")
    texts = TEXTS if change == "key" else {**TEXTS, change: [*TEXTS[change][:-1], "oval cyst"]}
    distiller = ByFirstWord()
    distill(distiller, texts, None, tmp_path, "b" if change == "key" else "a")
    assert distiller.fits == 1


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [("npz", "flip"), ("npz", "gone"), ("json", "flip"), ("json", "gone"), ("png", "gone")],  # damage to a png is seen
)
def test_a_damaged_cache_is_detected_and_rewritten(tmp_path, caplog, suffix, damage):
    found = distill(ByFirstWord(), TEXTS, None, tmp_path, "a")
    (path,) = (tmp_path / "topics").glob(f"*.{suffix}")
    if damage == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2 if suffix == "npz" else 0] ^= 1
        path.write_bytes(content)
    again = ByFirstWord()
    with caplog.at_level(logging.WARNING):
        assert same(found, distill(again, TEXTS, None, tmp_path, "a"))
    assert again.fits == 1
    assert "computed again" in caplog.text or (suffix, damage) == ("json", "gone")


def test_the_map_has_each_different_training_report_once_with_its_topic(tmp_path):
    topics = distill(ByFirstWord(), TEXTS, None, tmp_path, "a")
    columns = topics.columns(TEXTS["train"])
    assert columns["report"] == list(dict.fromkeys(TEXTS["train"])) and columns["copies"] == [2, 1, 1, 1, 1]
    assert columns["topic"] == [0, 0, 1, 1, 1] and topics.positions.shape == (5, 2)
    assert columns["words"][0] == " ".join(topics.words[0])


def test_long_embeddings_are_kept_by_their_principal_components(tmp_path, monkeypatch):
    monkeypatch.setattr(distill_module, "DIMENSIONS", 1)
    assert distill(ByFirstWord(), TEXTS, None, tmp_path, "a").positions.shape == (5, 1)


def test_a_run_folder_gets_topics_and_their_picture(tmp_path):
    run = tmp_path / "runs" / "x"
    distill(ByFirstWord(), TEXTS, run, tmp_path, "a")
    distill(ByFirstWord(), TEXTS, run, tmp_path, "a")
    stored = json.loads((run / "topics.json").read_text())
    assert stored["labels"] == {"train": [0, 0, 0, 1, 1, 1], "val": [1], "test": [0]}
    assert stored["topics"][0]["size"] == 3 and stored["topics"][0]["example"] == "oval mass left"
    assert set(stored["quality"]) >= {"silhouette", "stability", "silhouette_different"}
    assert (run / "topics.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.rglob(".*")), "a part of a file is left"


def test_the_choice_of_the_topic_count_is_stored_and_plotted(tmp_path):
    plain, chooses, reader = ByFirstWord(), ByFirstWord(), ByFirstWord()
    chooses.choice = TopicChoice(2, [2, 3], [0.4, 0.3], [1.0, 0.5], [0.7, 0.4], [0.01, 0.02])
    assert distill(plain, TEXTS, tmp_path / "plain", tmp_path, "a").choice is None
    found = distill(chooses, TEXTS, None, tmp_path, "b")
    assert distill(reader, TEXTS, tmp_path / "chosen", tmp_path, "b").choice == found.choice == chooses.choice
    assert reader.fits == 0
    stored = json.loads((tmp_path / "chosen" / "topics.json").read_text())
    choice = stored["choice"]
    assert choice["counts"] == [2, 3] and choice["score"] == [0.7, 0.4] and choice["chosen"] == 2
    heights = [Image.open(tmp_path / run / "topics.png").height for run in ("plain", "chosen")]
    assert heights[1] > heights[0] + 200, "the plot has a curve below"


def test_another_sentence_encoder_in_the_same_folder_computes_topics_again(tmp_path):
    class Embedding:
        def __init__(self, identity):
            self.identity = identity

    fits = []
    for identity in ("hash of some weights", "hash of others", "hash of others"):
        distiller = ByFirstWord()
        distiller.embedding = Embedding(identity)
        distill(distiller, TEXTS, None, tmp_path, "a")
        fits.append(distiller.fits)
    assert fits == [1, 1, 0]


def test_points_of_two_dimensions_are_plotted_unprojected():
    points = np.random.default_rng(0).normal(size=(40, 2))
    assert np.array_equal(plot.flatten(points), points)
    assert np.array_equal(plot.flatten(points[:, :1]), np.stack([points[:, 0], np.zeros(40)], axis=1))


def test_empty_topics_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        topics = distill(ByFirstWord(), {"train": ["oval mass", "mass"]}, None, tmp_path, "a")
    assert "1 of 2 topics have no training report" in caplog.text and topics.sizes == [2, 0] and topics.words[1] == []


def test_a_cache_from_other_libraries_is_not_used(tmp_path, monkeypatch):
    distill(ByFirstWord(), TEXTS, None, tmp_path, "a")
    monkeypatch.setattr("framework.topics.distill.LIBRARIES", ("numpy",))
    again = ByFirstWord()
    distill(again, TEXTS, None, tmp_path, "a")
    assert again.fits == 1


def test_another_chinese_dictionary_computes_topics_again(tmp_path, monkeypatch):
    fits = []
    for terms in ("结节", "低回声", "低回声"):
        (tmp_path / "terms.txt").write_text(terms, encoding="utf-8")
        monkeypatch.setattr("framework.topics.distill.TERMS", tmp_path / "terms.txt")
        distiller = ByFirstWord()
        distill(distiller, TEXTS, None, tmp_path, "a")
        fits.append(distiller.fits)
    assert fits == [1, 1, 0]


def test_all_code_that_computes_topics_is_part_of_the_cache_key():
    """Everything that a listed file imports, except for code that only writes, loads or logs."""
    used = set()
    for part in distill_module.CODE:
        text = (distill_module.FRAMEWORK / f"{part}.py").read_text(encoding="utf-8")
        used.update(name.replace(".", "/") for name in re.findall(r"(?m)^from framework\.([\w.]+)", text))
    assert used - set(distill_module.CODE) == {
        "models/device",
        "models/size",
        "registry/source",
        "runtime/errors",
        "runtime/files",
        "runtime/memory",
        "runtime/packages",
    }


def test_topics_need_training_reports(tmp_path):
    with problem("empty-split", "split train"):
        distill(ByFirstWord(), {"val": ["cyst"]}, None, tmp_path, "a")


@pytest.mark.filterwarnings("error")  # matplotlib warns of each glyph that it lacks
@pytest.mark.parametrize("reports", [1, 5, 40])
def test_chinese_words_without_a_font_are_only_in_the_json(monkeypatch, reports):
    monkeypatch.setattr(plot, "chinese_font", lambda: None)
    points = np.random.default_rng(0).normal(size=(reports, 8)).astype(np.float32)
    labels = np.arange(reports) % 2
    words = [["低回声", "结节"], ["囊肿"]]
    quality = {"silhouette": None, "reports": float(reports)}
    picture = plot.draw_topics(points, np.ones(reports, int), labels, reports, words, [5, 2], quality)
    assert picture[:4] == b"\x89PNG"


def test_chinese_is_distinguished_from_latin():
    assert plot.is_chinese("oval 结节") and plot.is_chinese("，")
    assert not plot.is_chinese("oval, ≥ 2.5 × 3 µm é")
    for character in "低，豈":
        assert re.match("CJK|FULLWIDTH", unicodedata.name(character))


def test_copies_are_counted_once_among_different_reports():
    assert distinct_reports(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 3]
    assert (
        topic_quality(["a", "b"], np.eye(2), np.zeros(2, int), lambda places, seed: np.zeros(2), 0)["silhouette"]
        is None
    )


def test_copies_inflate_the_silhouette_but_not_the_one_of_different_reports():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 4))
    points = np.concatenate([noise, np.repeat(noise[:1], 60, axis=0)])
    labels = np.concatenate([[0], np.arange(19) % 2 + 1, np.zeros(60, int)])
    texts = [*map(str, range(20)), *["0"] * 60]
    quality = topic_quality(texts, points, labels, lambda places, seed: labels[places], 0)
    assert quality["silhouette"] > 0.5 > quality["silhouette_different"]
    assert quality["stability"] == 1 and quality["reports_different"] == 20


def test_a_silhouette_excludes_reports_at_the_origin():
    points = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [0, 0]])
    labels = np.array([0, 0, 1, 1, 0])
    assert silhouettes_of(points, 0)(labels) == silhouettes_of(points[:4], 0)(labels[:4])


def test_a_sample_of_distinct_reports_with_their_copies_is_fitted_again():
    texts = [*map(str, range(SAMPLE + 500)), *["7"] * 3]
    labels = np.arange(len(texts)) % 2
    seen: list[np.ndarray] = []

    def refit(places: np.ndarray, seed: int) -> np.ndarray:
        seen.append(places)
        return labels[places]

    quality = topic_quality(texts, np.random.default_rng(0).normal(size=(len(texts), 4)), labels, refit, 0)
    drawn = {texts[place] for place in seen[0]}
    assert len(drawn) == SAMPLE and quality["reports_refitted"] == len(seen[0])
    assert len(seen[0]) == sum(text in drawn for text in texts)
    assert quality["stability"] == quality["stability_different"] == 1


def test_characteristic_words_distinguish_a_topic_from_the_others():
    texts = ["gland even , cyst left .", "gland even , cyst right .", "gland even , mass left .", "gland even , mass ."]
    weights = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.1, 0.9, 0]])
    cards = describe_topics(texts, [text.split() for text in texts], weights.argmax(1), weights)
    assert [card.words[0] for card in cards[:2]] == ["cyst", "mass"]
    assert "gland" not in cards[0].words and "," not in cards[0].words
    assert cards[1].example == texts[3] and cards[0].size == 2
    assert (cards[2].words, cards[2].size, cards[2].example) == ([], 0, "")


def test_words_of_topics_are_content_words():
    texts = ["a cyst to the left", "a cyst to the right", "囊肿 大 者 一", "囊肿 大 者"]
    weights = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    cards = describe_topics(texts, [text.split() for text in texts], weights.argmax(1), weights)
    assert [card.words for card in cards] == [["cyst", "left", "right"], ["囊肿"]]

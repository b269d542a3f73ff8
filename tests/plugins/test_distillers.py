import random

import numpy as np
import pytest
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.metrics import adjusted_rand_score

from plugins.distiller.faiss_kmeans import FaissKMeans
from plugins.distiller.lda import LDA

KINDS = {
    "cyst": ["anechoic cyst with posterior enhancement", "thin smooth wall", "no inner flow"],
    "mass": ["irregular hypoechoic mass", "spiculated margin", "rich vascularity and calcification"],
    "surgery": ["postoperative scar after lumpectomy", "shadow behind the scar", "no recurrence"],
    "clear": ["no focal lesion", "homogeneous glandular tissue", "ducts not dilated"],
}


def corpus(reports: int, seed: int) -> tuple[list[str], list[int]]:
    """Reports of four kinds, and the kind of each."""
    draw = random.Random(seed)
    texts, kinds = [], []
    for number in range(reports):
        kind = number % 4
        phrases = draw.sample(list(KINDS.values())[kind], 2)
        side = draw.choice(["left", "right"])
        texts.append(f"{side} breast at {draw.randint(1, 12)} : {phrases[0]} , {phrases[1]} .")
        kinds.append(kind)
    return texts, kinds


def kmeans(**keys) -> FaissKMeans:
    return FaissKMeans(segment=str.split, seed=9233, **{"topics": 4, "dimensions": 16, **keys})


def lda(**keys) -> LDA:
    return LDA(segment=str.split, seed=9233, **{"topics": 4, "batch": 32, "passes": 6, **keys})


both = pytest.mark.parametrize("make", [kmeans, lda])


@both
def test_topics_follow_what_reports_say_also_for_reports_not_seen(make):
    distiller = make()
    distiller.fit(corpus(160, seed=1)[0])
    texts, kinds = corpus(80, seed=2)
    labels, weights = distiller.assign(texts)
    assert adjusted_rand_score(kinds, labels) > 0.8
    assert labels.dtype == np.int64 and weights.dtype == np.float32 and weights.shape == (80, 4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(weights.argmax(axis=1), labels)
    assert len(distiller.positions(texts)) == 80 and distiller.topic_count == 4
    assert (distiller.space is None) == isinstance(distiller, LDA)


@both
def test_same_seed_gives_the_same_topics(make):
    texts, _ = corpus(80, seed=1)
    one, two = make(), make()
    one.fit(texts)
    two.fit(texts)
    for a, b in zip(one.assign(texts), two.assign(texts)):
        assert np.array_equal(a, b)
    assert one.describe() == two.describe()


@both
def test_topics_are_numbered_by_size_and_described_by_their_words(make):
    texts, _ = corpus(100, seed=1)
    distiller = make()
    distiller.fit([*texts, *[text for text in texts if "cyst" in text] * 2])
    cards = distiller.describe()
    assert [card.size for card in cards] == sorted((card.size for card in cards), reverse=True)
    assert sum(card.size for card in cards) == len(distiller._texts) and cards[0].size >= 50
    assert len(cards) == 4 and all(len(card.words) <= 8 for card in cards)
    told = [set(card.words) for card in cards]
    assert any(words & {"anechoic", "cyst", "wall", "inner"} for words in told[:1])
    assert "cyst" in cards[0].example or "wall" in cards[0].example


@both
def test_quality_is_high_where_topics_are_plain(make):
    distiller = make(restarts=2)
    distiller.fit(corpus(80, seed=1)[0])
    quality = distiller.quality()
    assert quality["silhouette"] > 0.2 and quality["stability"] > 0.6
    assert quality["reports"] == 80 and quality["reports_different"] <= 80


@both
def test_fewer_different_reports_than_topics_are_told(make):
    texts = ["left cyst .", "right mass ."] * 20
    with pytest.raises(ValueError, match=r"9 topics asked of 40 training reports, of which 2 differ.*topics to 2"):
        make(topics=9).fit(texts)


@both
def test_a_report_of_unknown_words_still_gets_a_topic(make):
    distiller = make()
    distiller.fit(corpus(80, seed=1)[0])
    labels, weights = distiller.assign(["unheard of", ""])
    assert ((labels >= 0) & (labels < 4)).all() and np.isfinite(weights).all()


def test_kmeans_uses_all_reports_and_not_a_sample_of_256_a_topic():
    """With one topic the centroid is the mean, so a sample would show."""
    texts, _ = corpus(600, seed=1)
    distiller = kmeans(topics=1, restarts=1)
    distiller.fit(texts)
    np.testing.assert_allclose(distiller._centroids[0], distiller._points.mean(axis=0), atol=1e-5)


def test_more_restarts_never_end_worse():
    texts, _ = corpus(160, seed=1)
    totals = []
    for restarts in (1, 4):
        distiller = kmeans(topics=9, restarts=restarts)
        distiller.fit(texts)
        totals.append(distiller._distances(distiller._points, distiller._centroids).min(axis=1).sum())
    assert totals[1] <= totals[0]


def test_as_many_topics_as_different_reports_are_one_each():
    texts = ["left cyst .", "right mass .", "no lesion seen"] * 3
    distiller = kmeans(topics=3)
    distiller.fit(texts)
    assert [card.size for card in distiller.describe()] == [3, 3, 3]
    assert distiller.assign(texts)[1].max(axis=1).min() > 0.99


def test_kmeans_says_what_it_runs_on(caplog):
    with caplog.at_level("INFO"):
        kmeans().fit(corpus(40, seed=1)[0])
    assert "clusters 40 reports on the" in caplog.text


def test_lda_keeps_the_likeliest_of_its_starts(monkeypatch):
    texts, _ = corpus(60, seed=1)
    distiller = lda(restarts=4, passes=4)
    fit, bounds = LatentDirichletAllocation.fit, []

    def noted(model, counts):
        fit(model, counts)
        bounds.append(model.score(counts))
        return model

    monkeypatch.setattr(LatentDirichletAllocation, "fit", noted)
    distiller.fit(texts)
    assert len(set(bounds)) == 4, "four different starts"
    assert distiller._model.score(distiller._counts) == max(bounds)


def test_lda_says_when_no_word_is_left():
    with pytest.raises(ValueError, match="none of 12 words stands in at least 2"):
        lda(topics=2).fit(["a b c", "d e f", "g h i", "j k l"])

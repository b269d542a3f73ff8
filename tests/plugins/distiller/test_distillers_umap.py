import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from corpora import corpus
from harness import problem
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

from framework.testing import check_distiller
from framework.text.embedding import build_text_embedding
from framework.topics import umap as topics_umap
from framework.topics.umap import UmapLayout
from plugins.distiller.umap_hdbscan import DenseGroups, UmapHdbscan
from plugins.distiller.umap_kmeans import UmapKMeans


class Principal:
    """A fake UMAP, since compiling UMAP takes longer than these tests: principal components, where, as in UMAP, the
    points of a batch depend on one another."""

    fits: ClassVar[list[np.ndarray]] = []

    def __init__(self, n_neighbors, n_components, metric, min_dist, random_state, n_jobs):
        assert n_neighbors >= 2 and metric == "cosine" and n_jobs == 1
        self.components = n_components

    def fit(self, vectors):
        self.fits.append(vectors)
        self.mean = vectors.mean(axis=0)
        self.axes = np.linalg.svd(vectors - self.mean, full_matrices=False)[2][: self.components]
        self.embedding_ = (vectors - self.mean) @ self.axes.T
        return self

    def transform(self, vectors):
        return (vectors - self.mean) @ self.axes.T + 0.2 * (len(vectors) - 1)


class Places:
    """An embedding of reports such as "0.5 2"; of other words it knows nothing."""

    space, identity = None, ""

    def fit(self, texts):
        return self

    def embed(self, texts):
        rows = [[float(word) for word in text.split()] if text[-1].isdigit() else [0, 0] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(-1, 2)


class Itself(Principal):
    def fit(self, vectors):
        self.embedding_ = vectors
        return self

    def transform(self, vectors):
        return vectors


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(topics_umap, "umap_class", lambda name: Principal)
    monkeypatch.setattr(Principal, "fits", [])


def plane(**keys) -> UmapLayout:
    embedding = build_text_embedding("counts", segment=str.split, seed=1)
    return UmapLayout("mine", embedding, **{"neighbours": 4, "components": 2, "min_dist": 0.1, "seed": 1, **keys})


def hdbscan(**keys) -> UmapHdbscan:
    return UmapHdbscan(**{"segment": str.split, "seed": 3, "neighbours": 5, "min_cluster_size": 5, **keys})


def kmeans(**keys) -> UmapKMeans:
    return UmapKMeans(**{"segment": str.split, "seed": 3, "neighbours": 5, "topics": 4, "restarts": 2, **keys})


def test_different_reports_are_embedded_once_and_copies_have_the_same_point(quick):
    texts = corpus(40, seed=1)[0]
    one, many = plane().fit(texts), plane().fit([*texts, *texts[:5] * 30])
    for laid_out in Principal.fits:
        assert len(laid_out) == len(np.unique(laid_out, axis=0)) <= len(set(texts))
    assert np.array_equal(one.places(texts)[0], many.places(texts)[0])
    there = one.places([texts[0], " ".join(reversed(texts[0].split()))])[0]
    assert np.array_equal(there[0], there[1]), "the same words in another order are the same counts"


def test_the_point_of_a_new_report_does_not_depend_on_its_batch(quick):
    laid_out, unseen = plane().fit(corpus(40, seed=1)[0]), corpus(12, seed=2)[0]
    together, known = laid_out.places(unseen)
    assert known.all() and len(set(unseen) - set(corpus(40, seed=1)[0])) > 3
    for text, place in zip(unseen, together):
        assert np.array_equal(laid_out.places([text])[0][0], place)


def test_a_report_of_unknown_words_is_placed_at_the_mean_with_a_notice(quick):
    laid_out = plane().fit([*corpus(40, seed=1)[0], ""])
    places, known = laid_out.places(["unheard of", "", "cyst"])
    assert known.tolist() == [False, False, True]
    np.testing.assert_allclose(places[:2], laid_out.places_mC.mean(axis=0)[None].repeat(2, 0), atol=1e-6)


def test_too_few_reports_for_umap_are_refused(quick):
    with problem("too-few-reports", "distiller mine"):
        plane().fit(["a b", "c d"] * 4)
    with problem("out-of-range", "distiller mine"):
        plane(neighbours=1)


def test_a_missing_umap_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with problem("missing-package", "distiller umap_kmeans"):
        kmeans()


@pytest.mark.parametrize("make", [kmeans, hdbscan])
def test_both_meet_the_contract_with_another_projection(quick, make):
    check_distiller(make)


def test_topics_follow_the_content_of_reports(quick):
    distiller = kmeans(components=4)
    distiller.fit(corpus(120, seed=1)[0])
    texts, kinds = corpus(60, seed=2)
    labels, weights = distiller.assign(texts)
    assert adjusted_rand_score(kinds, labels) > 0.6
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert distiller.embedding.space is None and distiller.space is None


def test_noise_is_the_last_topic_and_copies_count_in_sizes_alone(monkeypatch, quick):
    """Each report is a place, so that the groups are known."""
    monkeypatch.setattr(topics_umap, "umap_class", lambda name: Itself)
    points = scattered(1)
    texts = [f"{x:.6f} {y:.6f}" for x, y in points]
    middle, lonely = "3.0 0.0", texts[len(points) - 1 - int(np.argmax(np.linalg.norm(points[::-1] - 2, axis=1)))]
    distiller = hdbscan(min_cluster_size=8, min_samples=5)
    distiller.embedding = distiller.plane.embedding = Places()
    distiller.fit([*texts, *[lonely] * 100, *[texts[45]] * 50, "unheard"])
    found = HDBSCAN(min_cluster_size=8, min_samples=5, copy=True).fit(np.unique(Places().embed(texts), axis=0)).labels_
    noise = distiller.topic_count - 1
    assert noise == found.max() + 1
    labels, weights = distiller.assign([lonely, texts[45], middle, "unheard", "of it"])
    assert labels.tolist() == [noise, 0, 0, noise, noise] and weights[3:, noise].tolist() == [1, 1]
    cards = distiller.describe()
    assert cards[noise].size == (found < 0).sum() + 101 and cards[0].size > 70
    assert sum(card.size for card in cards) == len(texts) + 151
    assert [card.size for card in cards[:-1]] == sorted((card.size for card in cards[:-1]), reverse=True)


def test_reports_of_noise_alone_are_refused(quick):
    with problem("out-of-range", place="distiller"):
        hdbscan(min_cluster_size=60).fit(corpus(80, seed=1)[0])
    with problem("out-of-range", place="distiller.min_cluster_size"):
        hdbscan(min_cluster_size=1)


def test_auto_embeds_each_resample_once(quick):
    distiller = kmeans(topics="auto", auto_range=(2, 6), components=4, restarts=1)
    distiller.fit(corpus(120, seed=1)[0])
    assert len(Principal.fits) == 1 + 1 + 10  # for good, the comparison with all, and the resamples
    assert distiller.topic_count == distiller.choice.chosen and 2 <= distiller.topic_count <= 6


def scattered(seed: int) -> np.ndarray:
    """Three groups of different density, and noise between them."""
    draw = np.random.default_rng(seed)
    groups = [draw.normal(centre, width, (40, 2)) for centre, width in [((0, 0), 0.3), ((3, 0), 0.6), ((0, 4), 0.2)]]
    return np.concatenate([*groups, draw.uniform(-3, 7, (40, 2))])


def numbered(points: np.ndarray, min_samples: int) -> tuple[np.ndarray, int]:
    labels = HDBSCAN(min_cluster_size=8, min_samples=min_samples, copy=True).fit(points).labels_
    groups = int(labels.max()) + 1
    assert groups >= 2 and (labels < 0).sum() > 5
    return np.where(labels < 0, groups, labels), groups


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_for_new_points_gives_training_points_their_labels(seed):
    """HDBSCAN's tree is not asked, so that its labels test the rule."""
    points = scattered(seed)
    labels, groups = numbered(points, 5)
    rule = DenseGroups(points, labels, groups, 5)
    again, weights = rule.assign(points, np.full(len(points), -1))
    reach = rule.reach_G[np.minimum(labels, groups - 1)]
    for place in np.flatnonzero(again != labels):  # where its own core distance is exactly its group's end
        assert again[place] == groups and rule._to_groups(points[place : place + 1])[0].min() == reach[place]
    assert (again != labels).sum() < 5
    assert np.array_equal(rule.assign(points, np.arange(len(points)))[0], labels)
    np.testing.assert_allclose(weights.max(axis=1), weights[np.arange(len(points)), labels], atol=1e-6)


def test_a_new_point_joins_the_cluster_that_it_is_linked_with_before_the_cluster_ends():
    """Against components of the graph of mutual reachability, with the point in it, cut where the group ends."""
    points, further = scattered(1), np.random.default_rng(9).uniform(-3, 6, (150, 2))
    labels, groups = numbered(points, 5)
    rule = DenseGroups(points, labels, groups, 5)
    found, _ = rule.assign(further, np.full(len(further), -1))
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    core = np.sort(apart, axis=1)[:, 4]
    mutual = np.maximum(apart, np.maximum(core[:, None], core))
    ends = [mutual[labels == group][:, labels != group].min() for group in range(groups)]
    np.testing.assert_allclose(rule.reach_G, ends)
    for point, label in zip(further, found):
        away = np.linalg.norm(points - point, axis=1)
        to = np.maximum(away, np.maximum(np.sort(away)[4], core))
        whole = np.block([[mutual, to[:, None]], [to[None], np.zeros((1, 1))]])
        group = labels[min(np.flatnonzero(labels < groups), key=lambda row: (to[row], away[row]))]
        _, component = connected_components(whole < ends[group])
        linked = component[-1] in component[:-1][labels == group]
        assert label == (group if linked else groups)
    assert 10 < (found == groups).sum() < 140


class Greedy(Principal):
    """Takes more threads for the whole process, as numba does."""

    def fit(self, vectors):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().fit(vectors)

    def transform(self, vectors):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().transform(vectors)


def test_umap_restores_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(topics_umap, "umap_class", lambda name: Greedy)
    threads = torch.get_num_threads()
    laid_out = plane().fit(corpus(12, seed=1)[0])
    assert torch.get_num_threads() == threads
    laid_out.places(["a report of other words and a mass"])
    assert torch.get_num_threads() == threads


@pytest.mark.long  # its compiler takes 15 s
def test_umap_separates_groups_and_is_deterministic():
    texts, kinds = corpus(60, seed=1)
    distiller = kmeans(neighbours=10)
    distiller.fit(texts)
    unseen, unseen_kinds = corpus(8, seed=2)
    labels, _ = distiller.assign(texts)
    assert adjusted_rand_score(kinds, labels) > 0.8
    assert adjusted_rand_score(unseen_kinds, distiller.assign(unseen)[0]) > 0.6
    assert np.array_equal(distiller.assign(unseen[3:4])[0], distiller.assign(unseen)[0][3:4])
    assert np.array_equal(distiller.assign(texts)[0], labels)
    again = kmeans(neighbours=10)
    again.fit(texts)
    assert np.array_equal(again.positions(texts), distiller.positions(texts))

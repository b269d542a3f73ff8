from dataclasses import replace

import numpy as np
import pytest
from harness import problem
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from framework.topics import count as topic_count
from framework.topics.count import TopicChoice, _finer, choice_rows, choose_topic_count, trade_of


def blobs(count: int, each: int = 20) -> np.ndarray:
    """Points in as many directions, each a little beside its own."""
    draw = np.random.default_rng(0)
    return np.concatenate([np.eye(6)[k] + draw.normal(0, 0.08, (each, 6)) for k in range(count)])


def clusterer(points):
    def prepared(places, seed):
        return lambda count: KMeans(count, n_init=3, random_state=seed).fit_predict(points[places])

    return prepared


def test_auto_finds_the_number_of_groups():
    points = blobs(4)
    choice = choose_topic_count("mine", points, clusterer(points), (2, 7), 5)
    assert choice.chosen == 4 and choice.counts == [2, 3, 4, 5, 6, 7]
    assert choice.stability[2] == 1 and choice.silhouette[2] == max(choice.silhouette)
    assert choice == choose_topic_count("mine", points, clusterer(points), (2, 7), 5), "the same seed, the same choice"


def test_score_error_and_choice_follow_the_rule():
    """Every resample seen by a clusterer that cuts by a coordinate, and measured again."""
    points = np.random.default_rng(1).normal(size=(60, 4))
    seen: dict[int, list] = {2: [], 3: []}

    def cut(places, seed):
        def labels(count):
            shifted = points[places, 0] + 0.05 * (seed % 7)
            found = np.digitize(shifted, np.linspace(-1, 1, count + 1)[1:-1])
            seen[count].append((places, found))
            return found

        return labels

    choice = choose_topic_count("mine", points, cut, (2, 3), 11)
    for row, count in enumerate(choice.counts):
        (_, whole), *bootstrap_samples = seen[count]
        assert len(bootstrap_samples) == 10 and all(len(places) == 48 for places, _ in bootstrap_samples)
        scores = [
            (silhouette_score(points[p], found, metric="cosine") + adjusted_rand_score(whole[p], found)) / 2
            for p, found in bootstrap_samples
        ]
        assert choice.score[row] == pytest.approx(np.mean(scores))
        assert choice.error[row] == pytest.approx(np.std(scores, ddof=1) / 10**0.5)
        assert choice.score[row] == pytest.approx((choice.silhouette[row] + choice.stability[row]) / 2)
    best = int(np.argmax(choice.score))
    reaches = [c for c, s in zip(choice.counts, choice.score) if s >= choice.score[best] - choice.error[best]]
    assert choice.chosen == reaches[0]


def test_copies_change_neither_the_curve_nor_the_choice():
    points = blobs(3)
    copied = np.concatenate([points, np.repeat(points[:2], 50, axis=0)])
    labels = np.repeat([0, 1, 2], 20)
    of_copied = np.concatenate([labels, labels[:2].repeat(50)])

    def known(of):
        return lambda places, seed: lambda count: of[places] % count

    one = choose_topic_count("mine", points, known(labels), (2, 4), 3)
    assert one == choose_topic_count("mine", copied, known(of_copied), (2, 4), 3)


def test_of_many_reports_a_sample_is_searched_with_its_copies(monkeypatch, caplog):
    points = np.repeat(blobs(3), 2, axis=0)
    given = []

    def noted(places, seed):
        given.append(places)
        return clusterer(points)(places, seed)

    monkeypatch.setattr(topic_count, "SAMPLE", 40)
    with caplog.at_level("INFO"):
        choice = choose_topic_count("mine", points, noted, (2, 4), 3)
    searched, *resamples = given
    assert len(searched) == 80 and len(np.unique(points[searched], axis=0)) == 40, "each report with its copy"
    assert all(np.isin(places, searched).all() for places in resamples)
    assert choice.sampled == 40 and "on 40 of 60 distinct reports" in caplog.text
    alone = choose_topic_count("mine", points[searched], clusterer(points[searched]), (2, 4), 3)
    assert replace(choice, sampled=None) == alone


def test_a_wide_range_is_tried_in_geometric_steps():
    points = np.random.default_rng(0).normal(size=(150, 3))
    choice = choose_topic_count("mine", points, lambda places, seed: lambda count: places % count, (2, 100), 1)
    assert choice.counts[0] == 2 and choice.counts[-1] == 100 and len(choice.counts) <= 15


def test_more_topics_than_distinct_reports_are_refused_if_a_range_is_set():
    points = blobs(2, each=5)
    with problem("too-few-reports", "distiller mine") as found:
        choose_topic_count("mine", points, clusterer(points), (2, 9), 1)
    assert "at most 7" in found[0].hint
    assert choose_topic_count("mine", points, clusterer(points), None, 1).counts[-1] == 7
    with problem("too-few-reports", "distiller mine"):
        choose_topic_count("mine", points[:3], clusterer(points), None, 1)


def test_the_table_marks_the_chosen_count():
    rows = choice_rows(TopicChoice(3, [2, 3], [0.1, 0.2], [0.5, 1.0], [0.3, 0.6], [0.01, 0.02]))
    assert rows == [("2", "0.100", "0.500", "0.300 ± 0.010"), ("3 *", "0.200", "1.000", "0.600 ± 0.020")]


def test_a_finer_peak_that_is_nearly_as_stable_is_chosen_and_the_trade_is_printed(caplog):
    """Two halves that lie far apart, each of three groups."""
    draw = np.random.default_rng(0)
    centers = np.concatenate([[[8, 0, *row], [0, 8, *row]] for row in np.eye(3)])
    points = np.concatenate([center + draw.normal(0, 0.15, (20, 5)) for center in centers])
    with caplog.at_level("INFO"):
        choice = choose_topic_count("mine", points, clusterer(points), (2, 8), 5)
    assert choice.score[0] == max(choice.score) and (choice.chosen, choice.coarse) == (6, 2)
    assert "6 topics, although 2 score best" in trade_of(choice) and trade_of(choice) in caplog.text


def test_noise_has_no_finer_peak():
    score, error = np.array([0.9, 0.5, 0.52, 0.51, 0.4]), np.full(5, 0.03)
    assert _finer(0, score, error, np.ones(5)) == 0, "a peak within the standard errors"
    assert _finer(0, score, error / 10, np.ones(5)) == 2
    assert _finer(0, score, error / 10, np.array([1, 1, 0.6, 1, 1])) == 0, "a peak that is not stable"

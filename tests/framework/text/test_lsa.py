import logging

import numpy as np
import pytest
from harness import problem

from framework.text.lsa import ReportSpace, count_words

REPORTS = [
    text.split()
    for text in (
        "the left breast holds an oval mass , the mass is hypoechoic .",
        "the right breast holds a cyst , anechoic .",
        "no mass is seen in the left breast .",
        "no mass is seen in the right breast .",
        "an irregular mass with calcification , calcification throughout .",
        "the axilla holds no enlarged node .",
    )
]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_counts_times_word_vectors_have_the_direction_of_embed():
    space = ReportSpace(5, seed=0).fit(REPORTS)
    vocabulary = ["<pad>", "<bos>", "<eos>", "<unk>", *reversed(space.words), "unheard"]
    vectors = space.word_vectors(vocabulary)
    assert vectors.shape == (len(vocabulary), 5)
    assert not vectors[[0, 1, 2, 3, -1]].any()
    held_out = [*REPORTS, ["calcification", "in", "the", "right", "axilla", ",", "unheard"]]
    counts = count_words(held_out, {word: row for row, word in enumerate(vocabulary)}).toarray()
    np.testing.assert_allclose(unit(counts @ vectors), space.embed(held_out), atol=1e-6)


def test_embed_agrees_with_tfidf_and_svd_of_scikit_learn():
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weighted = TfidfVectorizer(analyzer=lambda words: words).fit_transform(REPORTS)
    theirs = unit(TruncatedSVD(4, n_iter=7, random_state=0).fit_transform(weighted))
    ours = ReportSpace(4, seed=0).fit(REPORTS).embed(REPORTS)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-5)


def test_the_same_seed_gives_the_same_space_in_any_order_of_reports():
    one, two = (ReportSpace(4, seed=3).fit(reports) for reports in (REPORTS, REPORTS))
    assert np.array_equal(one.vectors_WD, two.vectors_WD)
    assert one.words == ReportSpace(4, seed=3).fit(REPORTS[::-1]).words == sorted(one.words)


def test_fewer_dimensions_than_requested_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        space = ReportSpace(64, seed=0).fit([*REPORTS, *REPORTS])
    assert space.dimensions == len(REPORTS) == space.vectors_WD.shape[1]
    assert "has 6 dimensions, not 64: 6 distinct reports" in caplog.text


def test_directions_of_rounding_error_are_dropped():
    reports = [["a"], ["b"], ["a", "a"], ["b", "b", "b"]]  # four different reports, two directions
    assert ReportSpace(2, seed=0).fit(reports).dimensions == 2
    assert ReportSpace(3, seed=0).fit([*reports, ["a", "b"], ["a", "b", "c", "c"]]).dimensions == 3
    assert ReportSpace(2, seed=0).fit([["a", "b"], ["a", "a", "b", "b"]]).dimensions == 1


def test_a_report_of_unknown_words_is_embedded_as_0():
    space = ReportSpace(3, seed=0).fit(REPORTS)
    points = space.embed([["unheard"], [], REPORTS[0]])
    assert points.dtype == np.float32
    assert not points[:2].any() and np.linalg.norm(points[2]) == pytest.approx(1)


def test_reports_without_words_cannot_be_fitted():
    with problem("empty-report"):
        ReportSpace(3, seed=0).fit([[], []])


def test_a_restored_space_embeds_as_the_fitted_one():
    space = ReportSpace(4, seed=0).fit(REPORTS)
    again = ReportSpace.restore(space.words, space.vectors_WD, seed=0)
    assert np.array_equal(space.embed(REPORTS), again.embed(REPORTS))
    assert again.dimensions == 4

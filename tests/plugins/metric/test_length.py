"""Length match, counted by hand."""

from __future__ import annotations

from pairs import pair

from plugins.metric.length import Length


def test_length_is_a_mean_over_reports_and_the_ratio_counts_all_words() -> None:
    pairs = [pair(0, "a b c d", "a b"), pair(1, "a", "a b c d")]
    assert Length()(pairs) == {"length_match": (1 / 2 + 1 / 4) / 2, "length_match/ratio": 5 / 6}

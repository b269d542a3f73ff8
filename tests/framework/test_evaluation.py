"""Which process writes the reports of which exams."""

from __future__ import annotations

import pytest

from framework.evaluation import shares


@pytest.mark.parametrize("processes", range(1, 10))
def test_every_exam_is_one_process_s_and_no_process_has_two_more_than_another(processes: int) -> None:
    for exams in range(41):
        cut = shares(exams, processes)
        assert len(cut) == processes
        assert sorted(number for share in cut for number in share) == list(range(exams))
        lengths = [len(share) for share in cut]
        assert max(lengths) - min(lengths) <= 1
        assert lengths[0] == max(lengths), "the first process's batches are how many rounds there are"

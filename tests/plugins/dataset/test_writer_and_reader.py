"""The reports of the phantom against the lexicon of findings_f1, which was written independently."""

from __future__ import annotations

import numpy as np
import pytest

from framework.text.findings.reader import read
from plugins.dataset.phantom.chinese import write_chinese
from plugins.dataset.phantom.english import write_english
from plugins.dataset.phantom.truth import Truth, draw_truth
from plugins.dataset.phantom.wording import mentions_calcification, mentions_posterior


def facts_of(truth: Truth) -> set[tuple[str, str]]:
    """What a report of this truth states; the largest lesion is described in full."""
    facts = {("gland", truth.gland), ("lesion", "present" if truth.lesions else "absent")}
    if truth.size_gland:
        facts.add(("size_gland", truth.size_gland))
    if truth.steatosis:
        facts.add(("steatosis", "present"))
    if truth.surgery:
        facts.add(("surgery", "present"))
    if truth.mentions_nodes:
        facts.add(("lymph_node", truth.lymph_node))
    if truth.mentions_doppler:
        facts.add(("doppler", "present" if truth.lesions and truth.lesions[0].doppler else "absent"))
    if truth.category and (truth.organ == "thyroid" or truth.category > 1):
        facts.add(("birads" if truth.organ == "breast" else "tirads", str(truth.category)))
    for lesion in truth.lesions:
        facts |= {(key, getattr(lesion, key)) for key in ("side", "place", "echogenicity") if getattr(lesion, key)}
    if truth.lesions:
        main = truth.lesions[0]
        facts.add(("count", "multiple" if len(truth.lesions) > 1 else "single"))
        facts |= {("shape", main.shape), ("margin", main.margin)}
        if main.orientation:
            facts.add(("orientation", main.orientation))
        if mentions_posterior(truth, main):
            facts.add(("posterior", main.posterior))
        if mentions_calcification(truth, main):
            facts.add(("calcification", "present" if main.calcification else "absent"))
    return facts


@pytest.mark.parametrize("write", [write_english, write_chinese])
@pytest.mark.parametrize("organ", ["breast", "thyroid", "liver"])
def test_the_lexicon_finds_exactly_the_findings_of_phantom_reports(write, organ: str) -> None:
    for index in range(100):
        random = np.random.default_rng([7, index])
        truth = draw_truth(organ, 0.5, 0.5, random)
        report = write(truth, bool(index % 2), random)
        assert read(report) == facts_of(truth), report

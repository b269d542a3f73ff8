"""The losses that learn what training reports say: `findings` and `report_vector`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import ROOT, problem
from tiny_bert import save_tiny_bert

from framework.build import build_components, build_optimizer
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.exam import BOS, EOS, PAD, Batch, Features, Outputs
from framework.recipe import load_recipe
from framework.text.lsa import ReportSpace
from framework.train_step import train_step, weights_at
from plugins.loss.findings import Findings
from plugins.loss.report_vector import ReportVector

OVAL = "an oval mass in the left breast."
ROUND = "a round mass in the right breast."
CALCIFIED = "an oval mass with calcification in the left breast."
NONE = "no mass is seen."
REPORTS = [OVAL, OVAL, OVAL, ROUND, CALCIFIED, NONE]


def loss_of(**keys) -> Findings:
    return Findings(**{"training_reports": REPORTS, "feature_width": 6, "min_count": 1, **keys})


def names(loss: Findings) -> list[tuple[str, str]]:
    return [loss.pairs[column] for column in loss.kept]


def batch(loss: Findings | ReportVector, reports: list[str]) -> Batch:
    exams = len(reports)
    given = Batch([str(row) for row in range(exams)], torch.zeros(exams, 1), torch.ones(exams, 1), torch.ones(exams, 3))
    return replace(given, targets={loss.registered[1]: torch.from_numpy(loss.targets(reports))})


def outputs(exams: int, seed: int = 0) -> Outputs:
    drawn = torch.Generator().manual_seed(seed)
    patches, pooled = torch.randn(exams, 4, 6, generator=drawn), torch.randn(exams, 6, generator=drawn)
    return Outputs(Features(patches, torch.ones(exams, 4, dtype=torch.bool), pooled), torch.empty(0))


def test_a_pair_is_stated_absent_or_unknown_where_the_attribute_is_not_named():
    loss = loss_of()
    rows = dict(zip(names(loss), loss.targets([OVAL, CALCIFIED, NONE]).T.tolist()))
    assert rows["shape", "oval"] == [1, 1, -1] and rows["shape", "round"] == [0, 0, -1]
    assert rows["side", "left"] == [1, 1, -1]
    assert rows["calcification", "present"] == [0, 1, 0], "its only value: silence is its absence"
    assert rows["lesion", "absent"] == [0, 0, 1]


def test_pairs_need_min_count_reports_with_them_and_as_many_with_their_absence():
    irregular = "an irregular mass in the right breast."
    loss = loss_of(training_reports=[OVAL, OVAL, ROUND, ROUND, irregular], min_count=2)
    assert {("shape", "oval"), ("shape", "round")} <= set(names(loss)) and ("shape", "irregular") not in names(loss)
    rows = dict(zip(names(loss), loss.targets([irregular]).T.tolist()))
    assert rows["shape", "oval"] == [0], "a rare value is not predicted, but tells that the others are absent"
    always = [f"{report} there is a nodule." for report in (OVAL, ROUND)]
    assert ("lesion", "present") not in names(loss_of(training_reports=always)), "its absence is never stated"


def test_reports_that_the_lexicon_does_not_read_are_refused():
    with problem("does-not-fit", place="losses.findings.min_count"):
        loss_of(training_reports=["lorem ipsum", "dolor sit"])
    with problem("does-not-fit", place="losses.findings.min_count"):
        loss_of(min_count=7)


@pytest.mark.parametrize("balance", [0.0, 0.9, 1.0])
def test_weights_have_a_mean_of_1_over_the_training_reports_and_favour_what_is_rare(balance):
    loss = loss_of(balance=balance)
    target_NP = torch.from_numpy(loss.targets(REPORTS))
    for column, (absent, stated) in enumerate(loss.weight_2P.T.tolist()):
        positives, negatives = (int((target_NP[:, column] == value).sum()) for value in (1, 0))
        assert positives * stated + negatives * absent == pytest.approx(positives + negatives)
        assert (positives < negatives) == (stated > absent + 1e-6) or not balance
        assert balance < 1 or positives * stated == pytest.approx(negatives * absent)
        assert balance > 0 or stated == absent == pytest.approx(1)


def test_without_balance_the_term_divided_by_its_count_is_the_mean_cross_entropy_of_known_pairs():
    loss, given = loss_of(balance=0.0), outputs(6)
    here = batch(loss, REPORTS)
    target_BP = here.targets["findings"]
    known_BP = target_BP >= 0
    logits_BP = loss.head(given.features.pooled_BD)
    mean = F.binary_cross_entropy_with_logits(logits_BP[known_BP], target_BP[known_BP].float())
    assert loss.count(here) == known_BP.sum()
    assert torch.allclose(loss(here, given).total / loss.count(here), mean)


def test_constant_predictions_have_a_balanced_accuracy_of_one_half_and_right_ones_of_1():
    loss, given = loss_of(), outputs(6)
    here = batch(loss, REPORTS)
    torch.nn.init.zeros_(loss.head.weight)
    for value in (-9.0, 9.0):
        torch.nn.init.constant_(loss.head.bias, value)
        found = loss(here, given).metrics["balanced_accuracy"] / loss.count(here)
        assert found.item() == pytest.approx(0.5)
    right = here.targets["findings"].float() * 2 - 1
    loss._logits = lambda features: right
    assert (loss(here, given).metrics["balanced_accuracy"] / loss.count(here)).item() == pytest.approx(1.0)


def test_a_query_begins_as_the_mean_of_the_patches_that_are_there_and_learns_where_to_look():
    loss, given = loss_of(pooling="queries"), outputs(2)
    given.features.patch_mask_BN[1, 1:] = False
    here = batch(loss, [OVAL, ROUND])
    seen_BD = torch.stack([given.features.patches_BND[0].mean(0), given.features.patches_BND[1, 0]])
    assert torch.allclose(loss._logits(given.features), loss.head(seen_BD), atol=1e-6)
    with torch.no_grad():
        loss.query_AD[loss.attribute_P[0]] = 50 * given.features.patches_BND[0, 2]
    moved_P = (loss._logits(given.features)[0] - loss.head(seen_BD)[0]).abs() > 1e-4
    assert moved_P.tolist() == (loss.attribute_P == loss.attribute_P[0]).tolist(), "the pairs of this attribute"
    loss(here, given).total.backward()
    assert loss.query_AD.grad.any()


def test_an_exam_without_a_known_pair_adds_nothing_and_keeps_the_graph():
    reports = [OVAL, ROUND]
    loss = loss_of(training_reports=reports)
    here = batch(loss, ["lorem ipsum"])
    total = loss(here, outputs(1)).total
    assert loss.count(here) == 0 and total == 0
    total.backward()
    assert loss.head.weight.grad is not None


WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "oval", "mass", "left", "round", "right"]
SPACE = ReportSpace(3, seed=0).fit([["oval", "mass", "left"], ["round", "mass", "right"], ["oval", "mass", "right"]])
VECTORS = torch.from_numpy(SPACE.word_vectors(WORDS))


def vector_loss(**keys) -> ReportVector:
    return ReportVector(**{"vocabulary": WORDS, "word_vectors_WD": VECTORS, "feature_width": 6, **keys})


def reports_as_tokens(*reports: str) -> Batch:
    rows = [[BOS, *(WORDS.index(word) for word in report.split()), EOS] for report in reports]
    report_BT = torch.tensor([row + [PAD] * (5 - len(row)) for row in rows])
    return Batch(list(reports), torch.zeros(len(rows), 1), torch.ones(len(rows), 1), report_BT)


def test_the_report_vector_is_the_position_in_the_space_and_empty_reports_are_not_counted():
    loss, given = vector_loss(), outputs(3)
    here = reports_as_tokens("oval mass left", "round mass right", "")
    position_BD = torch.from_numpy(SPACE.embed([["oval", "mass", "left"], ["round", "mass", "right"]]))
    predicted_BD = F.normalize(loss.head(given.features.pooled_BD[:2]), dim=-1)
    assert loss.count(here) == 2
    assert torch.allclose(loss(here, given), (1 - (predicted_BD * position_BD).sum(-1)).sum(), atol=1e-5)


def test_dimensions_keep_those_that_explain_the_most():
    assert torch.equal(vector_loss(dimensions=2).word_vectors_WD, vector_loss().word_vectors_WD[:, :2])


def test_report_vectors_of_a_sentence_encoder_are_those_of_the_texts(tmp_path):
    encoder = str(save_tiny_bert(tmp_path / "encoder", subwords=WORDS[4:]))
    loss = vector_loss(space="sentence_encoder", encoder=encoder, hidden=5)
    vectors = loss.targets(["oval mass", "", "oval mass"])
    assert np.array_equal(vectors[0], vectors[2]) and not vectors[1].any()
    assert loss.count(batch(loss, ["oval mass", ""])) == 1
    assert not loss.state_dict().keys() - {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}
    assert loss.external_weights is not None, "a resumed run compares the encoder's files"


@pytest.mark.parametrize(
    ("keys", "code", "key"),
    [
        ({"space": "sentence_encoder"}, "missing-key", "encoder"),
        ({"space": "sentence_encoder", "encoder": "/nowhere"}, "no-such-file", "encoder"),
        ({"encoder": "/nowhere"}, "ignored-setting", "encoder"),
        ({"space": "sentence_encoder", "encoder": "/nowhere", "dimensions": 3}, "ignored-setting", "dimensions"),
        ({"vocabulary": [*WORDS, "##echo"]}, "does-not-fit", "losses.report_vector"),
    ],
)
def test_keys_of_the_report_vector_that_do_not_fit_are_refused(keys, code, key):
    with problem(code, place=key):
        vector_loss(**keys)


RECIPE = f"""
_base_: {ROOT}/recipes/smoke.yaml
data: {{dataset: {{exams: 32, val_exams: 2, test_exams: 2}}}}
losses:
  findings: {{weight: 1.0, min_count: 4, POOLING}}
  report_vector: {{weight: 1.0}}
"""


@pytest.mark.parametrize("pooling", ["pooled", "queries"])
def test_both_terms_fall_on_phantom_exams_and_do_not_depend_on_the_micro_batches(pooling: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("POOLING", f"pooling: {pooling}"))
    recipe = load_recipe(path, [f"data.cache_dir={tmp_path}"])
    accelerator = start_accelerator(recipe)
    components = build_components(recipe, accelerator, run=None)
    plan, train_set, task = BatchPlan.plan(8, None, 0, 1), components.exams["train"], components.task
    assert not components.exams["val"].targets and train_set.targets.keys() == {"findings"}
    strategy = prepare(accelerator, recipe, task, plan, lambda task: build_optimizer(recipe, task))
    weights_L, place = weights_at(recipe, 0, 1), [list(task.losses).index(n) for n in ("findings", "report_vector")]

    samples = [train_set[number] for number in range(8)]
    with torch.no_grad():
        whole = task(collate(samples).to("cpu")).term_sums_L[place]
        halves = sum(task(collate(part).to("cpu")).term_sums_L[place] for part in (samples[:3], samples[3:]))
    assert torch.allclose(whole, halves, rtol=1e-4)

    terms = [train_step(strategy, [collate(samples)], weights_L) for _ in range(12)]
    first, last = terms[0].terms_L[place], terms[-1].terms_L[place]
    assert (last < 0.9 * first).all()
    assert terms[-1].metrics["findings/balanced_accuracy"] > terms[0].metrics["findings/balanced_accuracy"]

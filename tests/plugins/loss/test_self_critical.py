"""The loss `self_critical`, its sampler and its reward, against exact sums over all reports."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from harness import ROOT, launch, problem, records
from torch import Tensor, nn

from framework import build
from framework.exam import BOS, EOS, PAD, Batch, Features, Outputs, Pair
from framework.models.sampling import evaluating, report_logp, sample, words_of
from framework.recipe import RecipeError, load_recipe
from framework.scoring.reward import Reward
from plugins.loss import self_critical
from plugins.loss.self_critical import SelfCritical
from plugins.metric.bleu import Bleu
from plugins.metric.cider import Cider
from plugins.metric.distinct import Distinct
from plugins.metric.repetition import Repetition
from plugins.metric.rouge_l import RougeL

A, B, C = 4, 5, 6
REPORTS = {"e0": "a b c a", "e1": "c c b", "e2": "a a b b c", "e3": "b c", "e4": "b a c a b"}


class Words:
    """A tokenizer of three words, ids 4 to 6."""

    def segment(self, text: str) -> list[str]:
        return text.split()

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join("abc"[word - A] for word in ids)


class Decoder(nn.Module):
    """The next word from the one before, how many there were, and the features: logits of 7 tokens."""

    def __init__(self, words: int = 7, places: int = 8, width: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.before = nn.Embedding(words, words)
        self.place = nn.Embedding(places, words)
        self.look = nn.Linear(width, words)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        places = self.place(torch.arange(tokens_BT.shape[1]))
        return self.dropout(self.before(tokens_BT) + places + self.look(features.pooled_BD)[:, None])

    def init_cache(self, features: Features) -> dict[str, Tensor]:
        return {"image": features.pooled_BD, "length": torch.zeros(len(features.pooled_BD), dtype=torch.long)}

    def step(self, tokens_B: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits_BW = self.before(tokens_B) + self.place(state["length"]) + self.look(state["image"])
        return self.dropout(logits_BW), {**state, "length": state["length"] + 1}


def features(exams: int) -> Features:
    pooled = torch.randn(exams, 3, generator=torch.Generator().manual_seed(1))
    return Features(pooled[:, None], torch.ones(exams, 1, dtype=torch.bool), pooled)


def batch(*exam_ids: str) -> Batch:
    return Batch(
        list(exam_ids), torch.zeros(len(exam_ids), 1), torch.ones(len(exam_ids), 1), torch.tensor([[BOS, A, EOS]])
    )


def reward(**weights: float) -> Reward:
    made = [Cider(), Bleu(), RougeL()]
    return Reward(weights, {name: metric for metric in made for name in metric.names}, Words(), REPORTS)


# --- the sampler


def every_report(places: int) -> list[list[int]]:
    """Every report that a decoder of a, b and the end can write in so many places."""
    ended = [
        [*words, EOS, *[PAD] * (places - length - 1)]
        for length in range(places)
        for words in itertools.product((A, B), repeat=length)
    ]
    return ended + [list(words) for words in itertools.product((A, B), repeat=places)]


def chance(decoder: Decoder, seen: Features, report: Sequence[int]) -> Tensor:
    """The probability of a report: the product of softmaxes over the three possible tokens."""
    last, state, product = BOS, decoder.init_cache(seen), torch.ones(())
    for word in report:
        if word == PAD:
            break
        logits, state = decoder.step(torch.tensor([last]), state)
        able = torch.tensor([EOS, A, B])
        product = product * torch.exp(logits[0, word]) / torch.exp(logits[0, able]).sum()
        last = word
    return product


@pytest.fixture
def small() -> tuple[Decoder, Features]:
    """A decoder of three words (a, b, the end), and one exam."""
    torch.manual_seed(3)
    return Decoder(words=6), features(1)


def test_probabilities_of_reports_are_products_over_tokens_and_sum_to_1(
    small: tuple[Decoder, Features],
) -> None:
    decoder, seen = small
    reports = every_report(2)
    logps = torch.cat([report_logp(decoder, seen, torch.tensor([report])) for report in reports])
    torch.testing.assert_close(logps.exp(), torch.stack([chance(decoder, seen, report) for report in reports]))
    assert len(reports) == 7 and float(logps.exp().sum().detach()) == pytest.approx(1)


def test_samples_follow_the_probabilities_of_the_decoder(small: tuple[Decoder, Features]) -> None:
    decoder, seen = small
    rows = 20_000
    torch.manual_seed(0)
    many = Features(*(value.expand(rows, *value.shape[1:]) for value in seen))
    drawn = sample(decoder, many, max_length=2)
    for report in every_report(2):
        share = float((drawn == torch.tensor(report)).all(1).float().mean())
        expected = float(chance(decoder, seen, report).detach())
        assert abs(share - expected) < 5 * (expected * (1 - expected) / rows) ** 0.5, report


def test_a_sample_ends_with_eos_or_at_max_length() -> None:
    decoder = Decoder()
    drawn = sample(decoder, features(64), max_length=4)
    for row in drawn.tolist():
        end = row.index(EOS) if EOS in row else len(row)
        assert all(word >= A for word in row[:end]) and all(word == PAD for word in row[end + 1 :])
    assert drawn.shape[1] == 4 and any(EOS not in row for row in drawn.tolist()), "some are cut off"
    assert words_of(torch.tensor([[A, B, EOS, PAD], [C, C, C, C], [EOS, PAD, PAD, PAD]])) == [[A, B], [C] * 4, []]


def test_padding_adds_no_log_probability_and_no_gradient() -> None:
    decoder, seen = Decoder(), features(2)
    one = report_logp(decoder, seen, torch.tensor([[A, EOS, PAD, PAD], [A, B, C, EOS]]))
    alone = report_logp(decoder, Features(*(value[:1] for value in seen)), torch.tensor([[A, EOS]]))
    torch.testing.assert_close(one[:1], alone)
    one[0].backward()
    assert torch.isfinite(decoder.place.weight.grad).all() and not decoder.place.weight.grad[2:].any()


def test_modules_return_to_their_own_mode_after_evaluation() -> None:
    decoder = Decoder(dropout=0.5).train()
    decoder.look.eval()  # as a frozen part is
    with evaluating(decoder):
        assert not any(part.training for part in decoder.modules())
    assert decoder.training and decoder.dropout.training and not decoder.look.training


# --- the gradient


@pytest.mark.parametrize(("baseline", "samples"), [("greedy", 1), ("greedy", 2), ("mean", 2), ("mean", 3)])
def test_the_expected_gradient_equals_that_of_the_expected_reward(
    small: tuple[Decoder, Features], monkeypatch: pytest.MonkeyPatch, baseline: str, samples: int
) -> None:
    """Summed over all samples of the seven reports, weighted by probability: the baseline adds nothing."""
    decoder, seen = small
    reports = every_report(2) if samples < 3 else every_report(1)
    places = len(reports[0])
    worth = {tuple(words_of(torch.tensor([r]))[0]): float(number) ** 2 for number, r in enumerate(reports)}
    loss = SelfCritical(
        make_reward=lambda weights: lambda ids, written: np.array([worth[tuple(w)] for w in written]),
        max_length=places,
        samples=samples,
        baseline=baseline,
    )
    chances = [chance(decoder, seen, report) for report in reports]
    expected = sum(each * worth[tuple(words_of(torch.tensor([r]))[0])] for each, r in zip(chances, reports))
    wanted = torch.autograd.grad(-expected, list(decoder.parameters()), allow_unused=True, retain_graph=True)
    found = [torch.zeros_like(weight) for weight in decoder.parameters()]
    for drawn in itertools.product(range(len(reports)), repeat=samples):
        written = torch.tensor([reports[number] for number in drawn])
        monkeypatch.setattr(self_critical, "sample", lambda *_, written=written, **__: written)
        total = loss(batch("e0"), Outputs(seen, None, decoder)).total
        probability = float(torch.stack([chances[number] for number in drawn]).prod().detach())
        each = torch.autograd.grad(total, list(decoder.parameters()), allow_unused=True)
        found = [one if two is None else one + probability * two for one, two in zip(found, each)]
    for one, two in zip(found, wanted):
        torch.testing.assert_close(one, torch.zeros_like(one) if two is None else two, atol=1e-5, rtol=1e-5)
    assert found[0].abs().max() > 0.1


def test_the_baseline_mean_averages_the_other_samples_without_greedy_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, seen = Decoder(), features(2)
    drawn = torch.tensor([[A, EOS], [B, EOS], [C, EOS], [A, A], [EOS, PAD], [B, C]])  # three of each exam
    monkeypatch.setattr(self_critical, "sample", lambda *_, **__: drawn)
    monkeypatch.setattr(self_critical, "generate", lambda *_, **__: pytest.fail("a greedy report"))
    values = {"e0": [1.0, 2.0, 6.0], "e1": [0.0, 3.0, 0.0]}

    def worth(ids: Sequence[str], written: Sequence[list[int]]) -> np.ndarray:
        assert list(ids) == ["e0"] * 3 + ["e1"] * 3 and list(written) == words_of(drawn)
        return np.array([value for row in values.values() for value in row])

    loss = SelfCritical(make_reward=lambda weights: worth, max_length=2, samples=3, baseline="mean")
    total, metrics = loss(batch("e0", "e1"), Outputs(seen, None, decoder))
    better = torch.tensor([1 - 4, 2 - 3.5, 6 - 1.5, 0 - 1.5, 3 - 0, 0 - 1.5])
    twice = Features(*(value.repeat_interleave(3, 0) for value in seen))
    torch.testing.assert_close(total, -(better * report_logp(decoder, twice, drawn)).sum() / 3)
    assert {name: float(value) for name, value in metrics.items()} == {"drawn": 4.0}


def test_the_baseline_mean_of_one_sample_is_refused() -> None:
    with problem("conflicting-settings", place="losses.self_critical.samples"):
        SelfCritical(make_reward=lambda weights: None, max_length=2, baseline="mean")


def test_the_loss_is_minus_the_advantage_times_the_log_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, seen = Decoder(), features(2)
    drawn = torch.tensor([[A, B, C, A, EOS], [C, EOS, PAD, PAD, PAD]])
    monkeypatch.setattr(self_critical, "sample", lambda *_, **__: drawn)
    monkeypatch.setattr(self_critical, "generate", lambda *_, **__: [[B], [C, C, B]])
    make = lambda weights: Reward(weights, {"rouge_l": RougeL()}, Words(), REPORTS)  # noqa: E731
    loss = SelfCritical(make_reward=make, max_length=5, reward={"rouge_l": 2.0})
    rouge = RougeL()

    def score(written: str, true: str) -> float:
        return rouge([Pair("x", written, true, tuple(written.split()), tuple(true.split()))])["rouge_l"]

    better = [2 * (score("a b c a", REPORTS["e0"]) - score("b", REPORTS["e0"]))]
    better += [2 * (score("c", REPORTS["e1"]) - score("c c b", REPORTS["e1"]))]
    assert better[0] > 0 > better[1]
    given = batch("e0", "e1")
    expected = -(torch.tensor(better) * report_logp(decoder, seen, drawn)).sum()
    total, metrics = loss(given, Outputs(seen, None, decoder))
    torch.testing.assert_close(total, expected)
    assert loss.count(given) == 2
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "drawn": 2 * (score("a b c a", REPORTS["e0"]) + score("c", REPORTS["e1"])),
            "greedy": 2 * (score("b", REPORTS["e0"]) + score("c c b", REPORTS["e1"])),
        }
    )


def test_the_decoder_samples_without_dropout_and_returns_to_training_mode() -> None:
    torch.manual_seed(0)
    decoder, seen = Decoder(dropout=0.9).train(), features(3)
    loss = SelfCritical(make_reward=lambda weights: reward(**weights), max_length=5).train()
    torch.manual_seed(5)
    one = loss(batch("e0", "e1", "e2"), Outputs(seen, None, decoder)).total
    assert decoder.training and decoder.dropout.training
    torch.manual_seed(5)
    assert torch.equal(one, loss(batch("e0", "e1", "e2"), Outputs(seen, None, decoder.eval())).total)


def test_training_raises_the_reward() -> None:
    torch.manual_seed(0)
    ids = [*REPORTS] * 4
    seen, given, decoder = (
        Features(*(value.repeat(4, *[1] * (value.dim() - 1)) for value in features(5))),
        batch(*ids),
        Decoder(),
    )
    loss = SelfCritical(
        make_reward=lambda weights: reward(**weights), max_length=6, reward={"rouge_l": 1.0, "bleu_1": 0.5}
    )
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.1)

    def score() -> float:
        return float(
            np.mean([loss.reward(ids, words_of(sample(decoder, seen, max_length=6))).mean() for _ in range(5)])
        )

    before = score()
    for _ in range(40):
        optimizer.zero_grad()
        (loss(given, Outputs(seen, None, decoder)).total / loss.count(given)).backward()
        optimizer.step()
    assert score() > before + 0.3, (before, score())


# --- the reward


def test_a_reward_is_the_weighted_sum_of_scores_of_single_reports() -> None:
    mix = reward(cider=0.5, bleu_1=2.0, rouge_l=1.0)
    ids, written = ["e2", "e0"], [[A, A, B], [C, A, B]]
    components = [reward(**{name: 1.0})(ids, written) for name in ("cider", "bleu_1", "rouge_l")]
    np.testing.assert_allclose(mix(ids, written), 0.5 * components[0] + 2 * components[1] + components[2])
    np.testing.assert_allclose(mix(ids, written)[::-1], mix(ids[::-1], written[::-1]))
    assert components[1][0] == pytest.approx(np.exp(1 - 5 / 3)) and components[1][1] == pytest.approx(np.exp(1 - 4 / 3))


def test_cider_takes_document_frequencies_from_all_training_reports() -> None:
    whole = [[A, A, B], [C, B], [A, B, C], [B], [B, A]]
    together = reward(cider=1.0)(list(REPORTS), whole)
    alone = [reward(cider=1.0)([name], [words])[0] for name, words in zip(REPORTS, whole)]
    np.testing.assert_allclose(together, alone)
    assert together.max() > 0, "CIDEr with the document frequencies of one report is always 0"
    pairs = [
        Pair(n, "", t, tuple(Words().decode(w).split()), tuple(t.split())) for (n, t), w in zip(REPORTS.items(), whole)
    ]
    np.testing.assert_allclose(together.mean(), Cider()(pairs)["cider"], rtol=1e-6)


def test_a_score_that_is_better_when_lower_needs_a_negative_weight() -> None:
    worth = Reward({"repeated_4gram": -2.0}, {"repeated_4gram": Repetition()}, Words(), REPORTS)
    assert worth(["e0", "e1"], [[A] * 9, [A, B, C]]).tolist() == [-2.0, 0.0]
    for weight in (1.0, 0.0):
        with problem("out-of-range" if weight else "ignored-setting", place="reward"):
            Reward({"repeated_4gram": weight}, {"repeated_4gram": Repetition()}, Words(), REPORTS)


class Twin(Bleu):
    """Gives BLEU-4 too, like `Bleu`."""

    names = ("bleu_4", "twin")

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        return {**super().compute(sums), "twin": np.full(len(sums), 0.25)}


def test_a_score_that_two_metrics_give_counts_once() -> None:
    worth = Reward({"bleu_4": 1.0, "twin": 1.0}, {"bleu_4": Bleu(), "twin": Twin()}, Words(), REPORTS)
    assert worth(["e2"], [[A, A, B, B, C]]).tolist() == [pytest.approx(1.25)]


def test_a_corpus_score_is_refused_as_a_reward() -> None:
    with problem("unsupported", place="reward"):
        Reward({"distinct_1": 1.0}, {"distinct_1": Distinct()}, Words(), REPORTS)


def test_a_reward_without_weights_is_refused() -> None:
    with problem("missing-key", place="reward"):
        Reward({}, {}, Words(), REPORTS)


def mistakes(*overrides: str) -> list[str]:
    """Code and key of each problem."""
    with pytest.raises(RecipeError) as raised:
        load_recipe("smoke", overrides)
    return [f"{each.code} {each.place.rpartition(': ')[2]}" for each in raised.value.problems]


def test_a_recipe_with_a_wrong_reward_is_refused() -> None:
    reward = "losses.self_critical.reward"
    unknown = mistakes("+losses.self_critical={reward: {cidr: 1.0, bleu_4: 0.5}}")
    assert unknown == [f"unknown-name {reward}.cidr"]
    assert mistakes("+losses.self_critical={reward: {}}") == [f"missing-key {reward}"]
    weights = "{bleu_4: 0, cider: -1, repeated_4gram: 1, distinct_2: 1}"
    assert mistakes(f"+losses.self_critical={{reward: {weights}}}") == [
        f"ignored-setting {reward}.bleu_4",
        f"out-of-range {reward}.cider",
        f"out-of-range {reward}.repeated_4gram",
        f"unsupported {reward}.distinct_2",
    ]
    load_recipe("smoke", ["+losses.self_critical={reward: {cider: 1, repeated_4gram: -1}}"])
    load_recipe("smoke", ["+losses.self_critical={reward: {findings_f1: 1.0}}"])  # no metric of the recipe's own


@pytest.mark.parametrize("strategy", ["zero3", "fsdp"])
def test_strategies_that_shard_weights_are_refused(strategy: str) -> None:
    found = mistakes("+losses.self_critical={}", f"distributed.strategy={strategy}")
    assert found == ["unsupported losses.self_critical"]
    load_recipe("smoke", ["+losses.self_critical.weight=0", f"distributed.strategy={strategy}"])


def test_learned_weighting_is_refused_with_a_loss_that_can_be_negative() -> None:
    found = mistakes("+losses.self_critical={}", "train.weighting=uncertainty")
    assert found == ["conflicting-settings train.weighting=uncertainty"]


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ("losses.self_critical={baseline: mean}", "conflicting-settings"),
        ("losses.global_semantic={space: sentence_encoder}", "missing-key"),
        ("losses.global_semantic={encoder: nowhere}", "ignored-setting"),
        ("losses.global_semantic={space: sentence_encoder, encoder: /nowhere}", "no-such-file"),
        ("losses.self_critical={reward: {radeval: 1.0}}", "missing-package"),
    ],
)
def test_wrong_settings_of_a_loss_are_found_before_an_image_is_read(
    keys: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2"]
    recipe = load_recipe("smoke", ["~losses.global_semantic", f"+{keys}", f"data.cache_dir={tmp_path}", *few])
    monkeypatch.setitem(sys.modules, "radeval", None)
    monkeypatch.setattr(build, "build_image_cache", lambda *_, **__: pytest.fail("images are read"))
    with problem(code):
        build.build_components(recipe, Accelerator(cpu=True), run=tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 1), ("ddp", 2), ("zero2", 2)])
def test_a_resumed_run_samples_the_same_reports(work: Path, strategy: str, processes: int) -> None:
    smoke, name = str(ROOT / "recipes" / "smoke.yaml"), f"critic-{strategy}-{processes}"
    keys = [
        "data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "distiller.topics=2",
        "train.epochs=2", "evaluate.max_length=12", "evaluate.num_beams=1", "train.micro_batch_size=2",
        "+losses.self_critical={weight: {to: 0.1, begin: 0.2, end: 0.4}, reward: {rouge_l: 1.0}}",
        f"distributed.strategy={strategy}", f"run.name={name}", "checkpoint.every_steps=1", "checkpoint.keep_last=9",
    ]  # fmt: skip
    launch(smoke, *keys, cwd=work, processes=processes, by="torchrun" if processes > 1 else None)
    run = work / "runs" / "smoke" / name
    first = records(run, "train/self_critical")
    drawn, greedy = (records(run, f"train/self_critical/{what}") for what in ("drawn", "greedy"))
    assert sorted(drawn) == sorted(greedy) == [1, 2, 3, 4] and all(0 <= value <= 1 for value in drawn.values())
    assert sorted(first) == [1, 2, 3, 4] and any(first.values()), "some samples differ from the greedy report"
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    (run / "checkpoints" / "latest").write_text("step-2\n")
    launch(smoke, *keys, f"resume={run}", cwd=work, processes=processes, by="torchrun" if processes > 1 else None)
    again = records(run, "train/self_critical")
    assert again == first

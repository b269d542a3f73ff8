"""What terms weigh, by schedules and by what is learned; and the two augmentations that a loss may compare."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ROOT, launch, records
from safetensors.torch import save_file
from torch import Tensor, nn

from framework.build import build_components, build_optimizer
from framework.checkpoint.format import SavedState
from framework.data.loading import BatchPlan, collate
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.exam import PAD, Batch, Features, Outputs, Term
from framework.optim import parameter_groups
from framework.recipe import Recipe, RecipeError, load_recipe, recipe_hash, save
from framework.recipe.explain import explain_rows
from framework.recipe.schema import WeightSchedule
from framework.task import ReportTask, Uncertainty
from framework.testing.elsewhere import PLACE, Elsewhere, There, TwoDevicesError
from framework.train_step import batch_augment, set_seed, train_step, weight_at, weights_at, weights_change
from plugins.encoder.tiny_cnn import TinyCnn

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
TINY = ["data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "distiller.topics=2"]
SHORT = [*TINY, "train.epochs=2", "evaluate.max_length=8", "evaluate.num_beams=1"]
RISE = "losses.topic.weight={from: 0.1, to: 0.5, begin: 0.25, end: 0.75}"
long = pytest.mark.long


def schedule(**values: object) -> WeightSchedule:
    return WeightSchedule.model_validate(values)


def test_a_linear_schedule_changes_between_begin_and_end_only() -> None:
    rise = schedule(**{"from": 0.1, "to": 0.5, "begin": 0.25, "end": 0.75})
    found = [weight_at(rise, done) for done in (0, 0.25, 0.375, 0.5, 0.75, 1)]
    assert found == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.5, 0.5])


def test_a_cosine_schedule_is_flat_at_both_ends() -> None:
    fall = schedule(**{"from": 1.0, "to": 0.0, "shape": "cosine"})
    found = [weight_at(fall, done) for done in (0, 0.1, 0.5, 0.9, 1)]
    assert found == pytest.approx([math.cos(math.pi * done / 2) ** 2 for done in (0, 0.1, 0.5, 0.9, 1)])


def test_a_schedule_without_length_is_a_step_and_a_number_is_constant() -> None:
    jump = schedule(**{"to": 2, "begin": 0.5, "end": 0.5})
    assert [weight_at(jump, done) for done in (0, 0.49, 0.5, 1)] == [0, 0, 2, 2]
    assert weight_at(0.3, 0) == weight_at(0.3, 1) == 0.3


def test_a_schedule_starts_at_from_and_ends_at_to() -> None:
    recipe = load_recipe("smoke", ["losses.topic.weight={to: 0.3}"])
    place = list(recipe.active_losses).index("topic")
    weights = torch.stack([weights_at(recipe, step, 7) for step in range(7)])
    torch.testing.assert_close(weights[:, place], torch.linspace(0, 0.3, 7))
    assert (
        len(set(weights[:, 1 - place].tolist())) == 1
        and weights_change(recipe)
        and not weights_change(load_recipe("smoke"))
    )
    assert weights_at(recipe, 0, 1)[place] == 0, "a run of one step"


def test_a_loss_whose_weight_rises_from_0_is_built_and_a_loss_of_weight_0_is_not() -> None:
    assert "topic" in load_recipe("smoke", ["losses.topic.weight={to: 0.3}"]).active_losses
    assert "topic" in load_recipe("smoke", ["losses.topic.weight={from: 0.3, to: 0}"]).active_losses
    assert "topic" not in load_recipe("smoke", ["losses.topic.weight={from: 0, to: 0}"]).active_losses
    off = load_recipe("smoke", ["losses.topic.weight={to: 0}", "distiller=none"])
    assert "topic" not in off.active_losses, "and needs no topics"


def test_a_schedule_is_saved_loaded_hashed_and_explained(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", [RISE])
    (tmp_path / "again.yaml").write_text(save(recipe), encoding="utf-8")
    assert "from: 0.1" in save(recipe)
    assert load_recipe(tmp_path / "again.yaml") == recipe != load_recipe("smoke")
    assert recipe_hash(recipe) != recipe_hash(load_recipe("smoke", [RISE.replace("0.5", "0.6")]))
    rows = {key: (value, origin) for key, value, origin in explain_rows(recipe, "losses.topic.weight")}
    assert rows["losses.topic.weight.from"][0] == "0.1" and "override" in rows["losses.topic.weight.from"][1]
    assert rows["losses.topic.weight.shape"] == ('"linear"', "default of framework/recipe/schema.py")
    changed = load_recipe("smoke", [RISE, "losses.topic.weight.to=0.9"]).losses["topic"].weight
    assert isinstance(changed, WeightSchedule) and (changed.start, changed.to) == (0.1, 0.9)


@pytest.mark.parametrize(
    ("weight", "problems"),
    [
        ("{from: 0, too: 1}", {"missing-key .to", "unknown-key .too"}),
        ("{to: -1}", {"out-of-range .to"}),
        ("{to: 1, end: 2}", {"out-of-range .end"}),
        ("{to: 1, shape: sine}", {"unknown-name .shape"}),
        ("{to: 1, begin: 0.5, end: 0.2}", {"out-of-range .end"}),
        ("much", {"wrong-type "}),
        ("-1", {"out-of-range "}),
    ],
)
def test_a_mistake_in_a_weight_is_refused_with_its_place(weight: str, problems: set[str]) -> None:
    override = f"losses.topic.weight={weight}"
    with pytest.raises(RecipeError) as raised:
        load_recipe("smoke", [override])
    found = {f"{each.code} {each.place}" for each in raised.value.problems}
    assert {
        each.replace(f"override: {override}", "").replace(": losses.topic.weight", "") for each in found
    } == problems


def test_a_learned_weight_has_the_gradient_of_the_formula() -> None:
    uncertainty = Uncertainty(3)
    log_variance = torch.tensor([0.3, -1.2, 2.0])
    uncertainty.log_variance_L.data.copy_(log_variance)
    sums, counts = torch.tensor([5.0, 0.4, 12.0], requires_grad=True), torch.tensor([4.0, 2.0, 30.0])
    minimized, factors = uncertainty(sums, counts)
    sigma = torch.exp(log_variance / 2)  # as in the paper: T / sigma^2 + log sigma, of the means
    torch.testing.assert_close(minimized / counts, sums / counts / sigma**2 + sigma.log())
    torch.testing.assert_close(factors, sigma**-2)
    (minimized / counts).sum().backward()
    torch.testing.assert_close(uncertainty.log_variance_L.grad, 0.5 - (sums / counts).detach() / sigma**2)
    torch.testing.assert_close(sums.grad, 1 / (sigma**2 * counts))


class Sums(nn.Module):
    """A loss of which each exam is an item, or each word."""

    def __init__(self, by_words: bool) -> None:
        super().__init__()
        self.by_words = by_words

    def count(self, batch: Batch) -> Tensor:
        return (batch.report_BT > 3).sum() if self.by_words else torch.tensor(len(batch.exam_ids))

    def forward(self, batch: Batch, outputs: object) -> Tensor:
        found = batch.report_BT * (batch.report_BT > 3) if self.by_words else batch.image_BVCHW
        return outputs.logits_BTW * found.sum()


class Encoder(nn.Module):
    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        return Features(None, None, None)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        return self.scale


def batch_of(rows: list[list[int]]) -> Batch:
    image = torch.tensor([row[0] / 10 for row in rows])
    return Batch([str(row) for row in rows], image, torch.ones(len(rows)), torch.tensor(rows))


def test_learned_weights_do_not_depend_on_the_micro_batch_size() -> None:
    rows = [[4, 5, 0], [6, 0, 0], [7, 8, 9], [5, 5, 5], [9, 0, 0], [4, 4, 0]]
    found = []
    for cut in ([6], [1, 2, 3], [5, 1]):
        task = ReportTask(Encoder(), Decoder(), {"exams": Sums(False), "words": Sums(True)}, Uncertainty(2))
        task.weighting.log_variance_L.data.copy_(torch.tensor([0.7, -0.4]))
        ends = torch.tensor(cut).cumsum(0).tolist()
        group = [batch_of(rows[end - size : end]) for size, end in zip(cut, ends)]
        counts = torch.stack([task.counts(batch) for batch in group]).sum(0)
        loss = sum((task(batch).objective_L / counts).sum() for batch in group)
        loss.backward()
        found.append(torch.stack([loss.detach(), task.decoder.scale.grad, *task.weighting.log_variance_L.grad]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


class Distance(nn.Module):
    """The squared distance of the two augmentations of each view."""

    needs = ("copies",)

    def count(self, batch: Batch) -> Tensor:
        return batch.view_mask_BV.sum()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        self.seen = outputs
        return (outputs.copies_2MD[0] - outputs.copies_2MD[1]).square().sum()


def pair_of(rows: slice = slice(None)) -> Batch:
    """Three exams of up to two views, in two augmentations."""
    image, copy = torch.rand(2, 3, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    names = ["a", "b", "c"][rows]
    return Batch(names, image[rows], mask[rows], torch.full((3, 4), 5)[rows], copy_BVCHW=copy[rows])


def test_copies_are_the_features_of_each_view_alone_and_nothing_else_is_computed() -> None:
    torch.manual_seed(0)
    task, batch, calls = ReportTask(TinyCnn(channels=1, width=16), Decoder(), {"d": Distance()}), pair_of(), []
    task.encoder.register_forward_hook(lambda *_: calls.append(1))
    value = task(batch).objective_L
    assert len(calls) == 1 and task.compares_copies
    seen, alone = task.losses["d"].seen, torch.ones(1, 1, dtype=torch.bool)
    assert seen.features is None and seen.logits_BTW is None
    for image, found in zip((batch.image_BVCHW, batch.copy_BVCHW), seen.copies_2MD):
        there = batch.view_mask_BV.nonzero().tolist()
        expected = [task.encoder(image[b : b + 1, v : v + 1], alone).pooled_BD[0] for b, v in there]
        torch.testing.assert_close(found, torch.stack(expected))
    batch.report_BT, batch.image_BVCHW[1, 1] = batch.report_BT + 1, 0.5
    assert torch.equal(task(batch).objective_L, value), "reports and missing views play no part"


def test_the_distance_of_copies_adds_up_over_micro_batches() -> None:
    task = ReportTask(TinyCnn(channels=1, width=16), Decoder(), {"d": Distance()})
    parts = [pair_of(slice(0, 1)), pair_of(slice(1, 3))]
    torch.testing.assert_close(sum(task(part).objective_L for part in parts), task(pair_of()).objective_L)
    assert sum(task.counts(part) for part in parts) == task.counts(pair_of()) == 5


def test_both_augmentations_are_seeded_by_exam_and_epoch_and_the_first_is_that_without_copies() -> None:
    def plugin(image: Tensor, seeds: list[int]) -> Tensor:
        return torch.stack(
            [torch.rand(each.shape, generator=torch.Generator().manual_seed(s)) for each, s in zip(image, seeds)]
        )

    def augmented(epoch: int, rows: slice = slice(None), copies: bool = True) -> Batch:
        return batch_augment(plugin, 1, epoch, copies=copies)(pair_of(rows))

    whole, alone = augmented(0), augmented(0, slice(1, 2))
    assert not torch.equal(whole.image_BVCHW, whole.copy_BVCHW)
    assert torch.equal(alone.copy_BVCHW[0], whole.copy_BVCHW[1])
    assert not torch.equal(augmented(1).copy_BVCHW, whole.copy_BVCHW)
    single = augmented(0, copies=False)
    assert torch.equal(single.image_BVCHW, whole.image_BVCHW) and single.copy_BVCHW is None


def built(folder: Path, *keys: str) -> tuple[object, Recipe, list[Batch]]:
    recipe = load_recipe(SMOKE, [*TINY, f"data.cache_dir={folder / 'cache'}", *keys])
    accelerator = start_accelerator(recipe)
    components = build_components(recipe, accelerator, run=folder)
    batch_plan = BatchPlan.plan(8, None, 0, 1)
    strategy = prepare(accelerator, recipe, components.task, batch_plan, lambda task: build_optimizer(recipe, task))
    return (
        strategy,
        recipe,
        [collate([components.exams["train"][place] for place in range(start, start + 8)]) for start in (0, 8)],
    )


def test_learned_weights_are_optimized_without_decay_saved_and_loaded(tmp_path: Path) -> None:
    strategy, recipe, (batch, other) = built(tmp_path, "train.weighting=uncertainty", "losses.topic.weight=0.2")
    learned = strategy.task.weighting.log_variance_L
    (group,) = [g for g in parameter_groups(strategy.task, 1.0, None) if any(p is learned for p in g.parameters)]
    assert not group.decay and any(p is learned for g in strategy.optimizer.param_groups for p in g["params"])
    first = train_step(strategy, [batch], weights_at(recipe, 0, 9))
    names = list(recipe.active_losses)
    torch.testing.assert_close(first.weights_L, torch.tensor([recipe.losses[name].weight for name in names]))
    assert float(first.loss) == pytest.approx(float((first.terms_L * first.weights_L).sum())), "log 1 is 0"
    before = learned.detach().clone()
    assert (before != 0).all() and (before.sign() == (2 * first.terms_L - 1).sign()).all(), "toward log 2 T"
    second = train_step(strategy, [other], weights_at(recipe, 1, 9))
    torch.testing.assert_close(second.weights_L, first.weights_L * torch.exp(-before))
    extra = (first.weights_L * before / 2).sum()
    assert float(second.loss) == pytest.approx(float((second.terms_L * second.weights_L).sum() + extra), rel=1e-5)
    state = strategy.state()
    assert torch.equal(state["weights/weighting.log_variance_L"], learned)
    fresh, _, _ = built(tmp_path, "train.weighting=uncertainty", "losses.topic.weight=0.2")
    save_file(state, tmp_path / "training.safetensors")
    fresh.load(SavedState(tmp_path), 2)
    assert torch.equal(fresh.task.weighting.log_variance_L, learned)
    one, two = (train_step(each, [batch], weights_at(recipe, 2, 9)) for each in (strategy, fresh))
    assert torch.equal(one.terms_L, two.terms_L) and torch.equal(learned, fresh.task.weighting.log_variance_L)


def test_fixed_weights_add_no_parameters_to_a_task(tmp_path: Path) -> None:
    strategy, recipe, (batch, _) = built(tmp_path)
    assert not [name for name, _ in strategy.task.named_parameters() if name.startswith("weighting")]
    output = strategy.task.eval()(batch)
    assert torch.equal(output.objective_L, output.term_sums_L) and (output.factors_L == 1).all()
    taken = train_step(strategy, [batch], weights_at(recipe, 0, 9))
    assert torch.equal(taken.weights_L, weights_at(recipe, 0, 9))
    assert float(taken.loss) == float((taken.terms_L * taken.weights_L).sum())


class WithMetrics(nn.Module):
    """Counts two items an exam; its metrics are the number of exams and of tokens."""

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(2.0 * len(batch.exam_ids))

    def forward(self, batch: Batch, outputs: Outputs) -> Term:
        tokens = (batch.report_BT != PAD).sum().float()
        return Term(outputs.logits_BTW.sum(), {"exams": torch.tensor(float(len(batch.exam_ids))), "tokens": tokens})


def test_metrics_of_a_loss_are_means_over_all_micro_batches_of_a_step(tmp_path: Path) -> None:
    strategy, recipe, (batch, other) = built(tmp_path)
    assert train_step(strategy, [batch], weights_at(recipe, 0, 9)).metrics == {}
    strategy.task.losses["my/metrics"] = WithMetrics()
    weights = torch.cat([weights_at(recipe, 0, 9), torch.ones(1)])
    tokens = sum(float((each.report_BT != PAD).sum()) for each in (batch, other))
    output = train_step(strategy, [batch, other], weights)
    found = {name: float(value) for name, value in output.metrics.items()}
    assert found == {"my/metrics/exams": 0.5, "my/metrics/tokens": pytest.approx(tokens / 32)}


class NotFinite(nn.Module):
    """A loss that is NaN for batches of one size."""

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(len(batch.exam_ids)))

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        return outputs.logits_BTW.sum() * (math.nan if len(batch.exam_ids) == 8 else 0.0)


def test_a_seed_gives_the_random_numbers_of_torch_manual_seed() -> None:
    torch.manual_seed(2**55 + 3)
    expected = torch.rand(5), torch.randn(3)
    set_seed(2**55 + 3)
    assert torch.equal(torch.rand(5), expected[0]) and torch.equal(torch.randn(3), expected[1])


def test_a_non_finite_step_changes_neither_weights_nor_ema(tmp_path: Path) -> None:
    strategy, recipe, (batch, _) = built(tmp_path, "train.ema_decay=0.9")
    weights = weights_at(recipe, 0, 9)
    assert bool(train_step(strategy, [batch], weights).finite)
    strategy.task.losses["bad"] = NotFinite()
    before = {name: value.clone() for name, value in strategy.state().items()}
    output = train_step(strategy, [batch], torch.cat([weights, torch.ones(1)]))
    assert not bool(output.finite) and math.isnan(float(output.loss))
    after = strategy.state()
    assert not [name for name, value in before.items() if not torch.equal(value, after[name])]


def test_a_fused_optimizer_skips_an_update_without_waiting_for_the_norm(tmp_path: Path) -> None:
    """What `update_if_finite` does on a GPU, on a CPU whose AdamW is fused."""
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer: Any = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for bad, expected in ((1.0, True), (0.0, False)):
        optimizer.found_inf = torch.tensor(bad)
        optimizer.step()
        assert torch.equal(weight.detach(), torch.ones(3)) == expected
    assert float(optimizer.state[weight]["step"]) == 1


@long
def test_a_run_records_its_loss_weights_and_resumes_with_them(work: Path) -> None:
    keys = [*SHORT, RISE, "train.weighting=uncertainty", "run.name=moving"]
    launch(SMOKE, *keys, cwd=work)
    run = work / "runs" / "smoke" / "moving"
    topic, words = records(run, "train/weight/topic"), records(run, "train/weight/next_token")
    assert sorted(topic) == sorted(words) == [1, 2, 3, 4] and topic[1] == pytest.approx(0.1)
    assert len(set(words.values())) == 4, "its factor moves"
    assert json.loads((run / "scores.json").read_text())["val"]["model"]


@long
@pytest.mark.parametrize(
    "way", [("ddp", 2, 4), ("zero2", 2, 2), ("zero3", 2, 4), ("fsdp", 2, 4), ("ddp", 1, 2)], ids=str
)
def test_learned_weights_are_the_same_under_every_strategy(
    exact_run: Callable[..., Path], way: tuple[str, int, int]
) -> None:
    strategy, processes, micro = way
    keys = ["train.weighting=uncertainty", RISE]
    one = exact_run(*keys)
    other = exact_run(
        *keys, f"distributed.strategy={strategy}", f"train.micro_batch_size={micro}", processes=processes, by="torchrun"
    )
    for name in ("train/loss", "train/weight/topic", "train/weight/next_token"):
        first, second = records(one, name), records(other, name)
        assert first.keys() == second.keys() and max(abs(first[step] - second[step]) for step in first) < 1e-5


def test_counts_are_computed_on_the_device_before_the_images_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ReportTask(Encoder(), Decoder(), {"exams": Sums(False), "my/metrics": WithMetrics()})
    batch = batch_of([[4, 5, 0], [6, 0, 0]])
    there = batch.map(There)
    with Elsewhere():
        assert task.counts(there).device == PLACE, "though a loss makes its number on the CPU"
        with pytest.raises(TwoDevicesError, match="'stack'"):
            torch.stack([torch.tensor(1.0), There(torch.tensor(1.0))])  # where no device lets single numbers mix
    strategy, recipe, batches = built(tmp_path)
    calls: list[str] = []
    real, count = Batch.to, type(strategy.task.losses["next_token"]).count

    def move(batch: Batch, device: torch.device, *, images: bool = True) -> Batch:
        calls.append("images" if images else "reports")
        return real(batch, device, images=images)

    def look(loss: nn.Module, batch: Batch) -> Tensor:
        calls.append("count")
        return count(loss, batch)

    monkeypatch.setattr(Batch, "to", move)
    monkeypatch.setattr(type(strategy.task.losses["next_token"]), "count", look)
    train_step(strategy, batches, weights_at(recipe, 0, 9))
    assert calls == ["reports", "reports", "count", "count", "images", "images"], (
        "each micro-batch moves when it is used"
    )

"""Plans: sizes equal to those of the real task, arithmetic checked by hand, nothing written."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from harness import ROOT, problem
from tiny_models import of_bytes, save_llama, save_swin
from torch import nn

from framework.build import build_components, build_optimizer, build_task
from framework.distributed.launch import start_accelerator
from framework.distributed.prepare import prepare
from framework.exam import Batch
from framework.plan.inputs import count_tokens, count_views, read_inputs
from framework.plan.memory import Memory, memory_by_strategy, optimizer_bytes
from framework.plan.model import Part, build_meta_task, count_topics, estimate_activations, parts_of, saved_bytes
from framework.plan.plan import batch_plan_of, plan
from framework.plan.probe import probe, time_steps
from framework.plan.tables import MEMORY_HEADER, in_bytes, in_time, memory_rows, part_rows, plan_rows, probe_rows
from framework.recipe import RECIPES, Recipe, load_recipe
from framework.registry import PluginError
from framework.text.lsa import ReportSpace

SMOKE = ROOT / "recipes" / "smoke.yaml"
SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
GB = 10**9


def smoke(*overrides: str) -> Recipe:
    return load_recipe(SMOKE, overrides)


def of_shapes(task: nn.Module) -> dict[str, tuple[tuple[int, ...], bool]]:
    return {name: (tuple(weight.shape), weight.requires_grad) for name, weight in task.named_parameters()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", SHIPPED)
def test_planned_parameters_equal_those_of_the_built_task(name: str, cache: Path, tmp_path: Path) -> None:
    keys = [
        "data=phantom_breast", "data.dataset.exams=24", "data.dataset.val_exams=2", "data.dataset.test_exams=2",
        "data.dataset.size=64", "data.image_size=64", f"data.cache_dir={cache}", "train.batch_size=4",
        "init_from=null",
    ]  # fmt: skip
    shipped = load_recipe(RECIPES / f"{name}.yaml")
    if shipped.has_topics:
        keys.append("distiller.topics=3")
    if (
        name.startswith("busbra") and shipped.evaluate.metrics
    ):  # its metrics read attributes that other data sets do not have
        keys.append("evaluate.metrics=[findings_f1]")
    if name.endswith(("_pretrained", "_finetuned")):
        keys += ["losses.findings.min_count=1", "data.augment=null"]
    if name == "swin_llm_lora":
        llama = save_llama(tmp_path / "llama", of_bytes(["An oval mass."]))
        keys += [f"model.encoder.weights={save_swin(tmp_path / 'swin')}", f"model.decoder.weights={llama}"]
    recipe = load_recipe(RECIPES / f"{name}.yaml", keys)
    real = build_components(recipe, start_accelerator(recipe), run=tmp_path).task
    inputs = read_inputs(recipe)
    meta = build_meta_task(recipe, inputs, count_topics(recipe, inputs))
    assert of_shapes(meta) == of_shapes(real)
    assert all(tensor.is_meta for tensor in [*meta.parameters(), *meta.buffers()])
    planned = {part.name: part.parameters for part in parts_of(meta)}
    parts = {"encoder": real.encoder, "decoder": real.decoder, "total": real}
    parts |= {f"losses.{name}": loss for name, loss in real.losses.items()}
    assert planned == {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


class Toy(nn.Module):
    """The linear map keeps its input and weight, which are there anyway; relu keeps its result, which square shares."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8, bias=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.linear(batch.image_BVCHW.flatten(1)).relu().square().exp().sum()


def test_activations_are_counted_once_and_without_weights_and_inputs() -> None:
    batch = Batch(["a", "b"], torch.rand(2, 1, 1, 2, 2), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 3))
    relu = exp = 2 * 8 * 4
    assert saved_bytes(Toy(), batch, None) == relu + exp
    # Autocast halves these, and the linear map keeps a half copy of its input, which was not there before.
    assert saved_bytes(Toy(), batch, torch.bfloat16) == (relu + exp) // 2 + 2 * 4 * 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fake_activations_have_the_size_of_real_ones(precision: str) -> None:
    recipe = smoke("model.decoder.dropout=0.1", "model.decoder.encoder_layers=1")
    inputs = read_inputs(recipe)
    views, tokens = count_views(inputs), count_tokens(inputs)
    task = build_meta_task(recipe, inputs, count_topics(recipe, inputs))
    found = estimate_activations(task, recipe, 4, views, tokens, 4, precision)
    report_BT = torch.full((4, tokens.longest), 3)
    image_BVCHW, mask_BV = torch.rand(4, views.most, 1, 32, 32), torch.ones(4, views.most, dtype=torch.bool)
    batch = Batch(list("abcd"), image_BVCHW, mask_BV, report_BT, torch.zeros(4, dtype=torch.long))
    real = saved_bytes(task.to_empty(device="cpu"), batch, {"bf16": torch.bfloat16}.get(precision))
    assert found.bytes == pytest.approx(real, rel=0.01) and (found.views, found.tokens) == (3, tokens.longest)


def test_half_precision_and_smaller_micro_batches_need_less_memory() -> None:
    whole, half = plan(smoke("train.precision=fp32"), 1), plan(smoke("train.precision=bf16"), 1)
    cut = plan(smoke("train.precision=fp32", "train.micro_batch_size=2"), 2)
    assert half.activations.bytes < 0.9 * whole.activations.bytes
    assert cut.activations.bytes == pytest.approx(whole.activations.bytes / 4, rel=0.1)
    assert (cut.steps.accumulation, cut.steps.processes, cut.steps.batch_size) == (2, 2, 8)


@pytest.mark.parametrize(("key", "kept"), [("amsgrad=false", 8), ("amsgrad=true", 12)])
def test_adam_has_two_states_for_each_parameter(key: str, kept: int) -> None:
    assert optimizer_bytes(smoke(f"optimizer.{key}")) == kept


def by_strategy(rows: tuple[Memory, ...]) -> dict[str, Memory]:
    return {row.strategy: row for row in rows}


def test_each_stage_of_zero_shards_one_more_part() -> None:
    """By hand, for 1e9 parameters, Adam and 64 processes: 4 bytes of weights, 4 of gradients, 8 of Adam's, and 4 of the
    copy that DeepSpeed's optimizer works on.
    """
    count = 10**9
    whole = Part("total", count, count, 0, 4 * count, 0)
    rows = by_strategy(memory_by_strategy(whole, 8, False, 0, 64, chosen="zero2"))
    gigabytes = {name: row.total / GB for name, row in rows.items()}
    expected = {"ddp": 16, "zero1": 8 + 12 / 64, "zero2": 4 + 16 / 64, "zero3": 20 / 64, "fsdp": 16 / 64}
    assert gigabytes == pytest.approx(expected)
    assert [name for name, row in rows.items() if row.chosen] == ["zero2"]
    averaged = by_strategy(memory_by_strategy(whole, 8, True, 0, 64, chosen="zero2"))
    assert averaged["ddp"].optimizer - rows["ddp"].optimizer == 4 * GB
    assert averaged["fsdp"].optimizer - rows["fsdp"].optimizer == 4 * GB / 64


def test_frozen_weights_have_no_gradients_and_buffers_are_not_sharded() -> None:
    whole = Part("total", 1000, 100, 5, 4000, 20)
    rows = by_strategy(memory_by_strategy(whole, 8, False, 7, 4, chosen="ddp"))
    assert asdict(rows["ddp"]) | {"total": 0} == {
        "strategy": "ddp", "chosen": True, "weights": 4020, "gradients": 400, "optimizer": 800, "activations": 7,
        "total": 0,
    }  # fmt: skip
    zero3 = rows["zero3"]
    assert (zero3.weights, zero3.gradients, zero3.optimizer, zero3.total) == (1020, 100, 300, 1427)
    assert (rows["zero2"].weights, rows["zero2"].gradients) == (4020, 100)


def test_planned_steps_checkpoints_and_validations_equal_those_of_the_trainer() -> None:
    found = plan(smoke("checkpoint.every_steps=3", "evaluate.every_epochs=2"), 1).steps
    assert (found.per_epoch, found.total) == (8, 24)
    # Steps 3, 6, 8, 9, 12, 15, 16, 18, 21, 24; epochs 2 and 3.
    assert (found.checkpoints, found.validations) == (10, 2)


def test_tokens_are_counted_after_truncation() -> None:
    full, short = plan(smoke(), 1).tokens, plan(smoke("evaluate.max_length=60"), 1).tokens
    assert full.truncated == 0 and full.longest > 60
    assert short.longest == short.p95 == 60 and 0 < short.truncated < 64 and short.total < full.total


def test_a_decoder_of_a_billion_parameters_is_planned_in_little_memory() -> None:
    keys = ["width=2048", "layers=24", "heads=16", "feedforward=8192"]
    recipe = smoke(*(f"model.decoder.{key}" for key in keys))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan(recipe, 8)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert found.parts[-1].parameters > GB and found.activations.bytes
    assert grown < 0.3 * GB < found.parts[-1].parameter_bytes / 10


def test_planning_and_probing_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = smoke()
    found = plan(recipe, 1)
    measured = probe(recipe, found)
    assert list(tmp_path.iterdir()) == []
    assert measured.steps_timed > 0 and measured.training_s == pytest.approx(24 * measured.step_s)
    assert measured.exams_per_s == pytest.approx(8 / measured.step_s)
    assert measured.validations_s > 0 and measured.evaluation_s > 0
    sum_s = measured.training_s + measured.validations_s + measured.evaluation_s
    assert measured.total_s == pytest.approx(sum_s)
    for rows in (plan_rows(found), part_rows(found), memory_rows(found), probe_rows(measured)):
        assert all(isinstance(cell, str) and cell for row in rows for cell in row)
    assert {len(row) for row in memory_rows(found)} == {len(MEMORY_HEADER)}
    assert json.loads(json.dumps(asdict(found)))["exams"] == {"train": 64, "val": 16, "test": 16}
    assert json.loads(json.dumps(asdict(measured)))["device"] == "cpu"


def test_a_probe_trains_the_parts_that_a_run_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    def stop(accelerator: object, recipe: Recipe, task: nn.Module, *rest: object) -> None:
        raise SeenError({name for name, weight in task.named_parameters() if weight.requires_grad})

    monkeypatch.setattr(sys.modules[time_steps.__module__], "prepare", stop)
    recipe = smoke("train.freeze=[decoder]", "optimizer.encoder_lr=0")
    with pytest.raises(SeenError) as seen:
        probe(recipe, plan(recipe, 1))
    (learns,) = seen.value.args
    assert learns and all(name.startswith("losses.") for name in learns)


def test_a_probe_runs_real_steps() -> None:
    recipe = smoke("train.micro_batch_size=4")
    inputs, accelerator = read_inputs(recipe), start_accelerator(recipe)
    space = ReportSpace(8, 0)
    space.fit([inputs.tokenizer.segment(exam.report) for exam in inputs.splits["train"]])
    task = build_task(recipe, inputs.tokenizer, 4, space, trained=True)
    before = {name: weight.detach().clone() for name, weight in task.named_parameters()}
    strategy = prepare(accelerator, recipe, task, batch_plan_of(recipe, 1), lambda task: build_optimizer(recipe, task))
    times = time_steps(strategy, recipe, plan(recipe, 1), inputs)
    assert len(times) > 0 and min(times) > 0
    assert not [name for name, weight in task.named_parameters() if torch.equal(weight, before[name])]


STUBBORN = """
from torch import nn
from framework.exam import Features
from framework.registry import register

@register("encoder", "stubborn")
class Stubborn(nn.Module):
    '''Looks at numbers.'''
    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.width = 8
        self.map = nn.Linear(channels, 8)
    def forward(self, image_BVCHW, view_mask_BV):
        if float(image_BVCHW.mean()) > 0.5:
            image_BVCHW = 1 - image_BVCHW
        patches_BND = self.map(image_BVCHW.mean((3, 4)))
        return Features(patches_BND, view_mask_BV, patches_BND.mean(1))

@register("distiller", "silent")
class Silent:
    '''Has no topic_count.'''
    def __init__(self, *, segment, seed) -> None:
        self.topic_count = "some"
"""


def outside(folder: Path, blocks: str) -> Recipe:
    (folder / "mine.py").write_text(STUBBORN)
    (folder / "mine.yaml").write_text(f"_base_: {SMOKE}\nplugins: [mine.py]\n{blocks}\n")
    return load_recipe(folder / "mine.yaml")


def test_a_plugin_that_reads_values_has_unknown_activations_and_the_rest_is_planned(tmp_path: Path) -> None:
    found = plan(outside(tmp_path, "model: {encoder: {name: stubborn}}"), 1)
    assert found.activations.bytes is None and "_local_scalar_dense" in found.activations.unknown
    assert found.parts[0].parameters == 16
    assert found.memory[0].total is None and found.memory[0].optimizer == 8 * found.parts[-1].trainable
    assert any(name == "activations" and text.startswith("not known: ") for name, text in plan_rows(found))
    assert memory_rows(found)[0][-1] == "not known"


def test_activations_of_a_loss_that_generates_reports_are_unknown(tmp_path: Path) -> None:
    found = plan(smoke("+losses.self_critical={}", f"data.cache_dir={tmp_path}"), 1)
    assert found.activations.bytes is None and found.activations.unknown.startswith("losses.self_critical ")
    assert ("activations", f"not known: {found.activations.unknown}") in plan_rows(found)


def test_a_distiller_without_a_topic_count_is_refused(tmp_path: Path) -> None:
    with problem("invalid-plugin", "mine.py", PluginError):
        plan(outside(tmp_path, "distiller: {name: silent}"), 1)


def test_topics_of_an_automatic_count_are_cached_for_the_run(tmp_path: Path) -> None:
    changes = ["distiller.topics=auto", "distiller.auto_range=[2,4]", "distiller.restarts=1"]
    found = plan(smoke(*changes, f"data.cache_dir={tmp_path}"), 1)
    (kept,) = (tmp_path / "topics").glob("*.json")
    assert found.topics == json.loads(kept.read_text())["count"] and 2 <= found.topics <= 4


def test_a_plan_refuses_the_recipes_that_a_run_refuses() -> None:
    with problem("does-not-divide", "train.batch_size"):
        plan(smoke(), 3)
    with problem("out-of-range", "train.batch_size"):
        plan(smoke("train.batch_size=1000"), 1)
    with problem("no-such-file", "nowhere.json"):
        plan(smoke("data.dataset={name: manifest, file: nowhere.json, images: nowhere}"), 1)


def test_sizes_and_times_have_readable_units() -> None:
    assert [in_bytes(count) for count in (0, 999, 1536, 5 * 2**30, None)] == [
        "0 B", "999 B", "1.5 KiB", "5 GiB", "not known",
    ]  # fmt: skip
    assert [in_time(seconds) for seconds in (0.741, 28.4, 375, 3000, 7500)] == [
        "0.74 s", "28 s", "6 min 15 s", "50 min", "2 h 05 min",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "code", "place"),
    [
        ("optimizer.group_lrs={decoder.embedd: 0.1}", "unknown-name", "optimizer.group_lrs"),
        ("init_from=runs/nope", "no-model", "init_from"),
        ("distributed.deepspeed_config=nope.json", "no-such-file", "distributed.deepspeed_config"),
    ],
)
def test_a_plan_refuses_sizes_that_a_run_refuses_later(key: str, code: str, place: str) -> None:
    few = ["data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "distiller.topics=2"]
    with problem(code, place):
        plan(smoke(*few, "distributed.strategy=zero2" if "deepspeed" in key else "train.epochs=1", key), 1)

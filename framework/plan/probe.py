"""How long it will take: a few real steps and one real batch of reports, on random images, in half a minute."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from framework.build import build_optimizer, build_plugin, build_task, freeze_parts
from framework.data.loading import Sample, collate
from framework.distributed.launch import describe_launch, start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.exam import EOS, Batch, Exam
from framework.models.generation import generate
from framework.plan.material import Material, read_material
from framework.plan.whole import Plan, batch_plan_of
from framework.recipe import Recipe
from framework.runtime.console import progress_bar
from framework.text.lsa import LSA_DIMENSIONS, ReportSpace
from framework.train_step import batch_augment, train_step, weights_at

WARM_UP, STEPS = 2, 20
STEPS_S, REPORTS_S = 14.0, 5.0  # seconds to stop after, give or take a step or a few words
FEW_WORDS = 4
NOT_COUNTED = (
    "decoding of images (once; then cached)",
    "distillation (once; then cached)",
    "pretrained weights (fetching them)",
    "scoring and the baselines at the end, such as the report of the nearest image",
    "checkpoints",
    "talk between processes",
)


@dataclass(frozen=True)
class Probe:
    """Seconds, measured on one process that does the share of one of `processes`."""

    device: str
    precision: str
    processes: int
    steps_timed: int
    step_s: float  # the median
    fastest_s: float  # far from the slowest, others are using the machine
    slowest_s: float
    exams_per_s: float  # of all processes
    training_s: float
    validations_s: float  # all of them
    evaluation_s: float  # the end's, on val and test
    together_s: float
    not_counted: tuple[str, ...] = NOT_COUNTED


def probe(recipe: Recipe, plan: Plan) -> Probe:
    """Times the recipe's own task on this device, then throws it away. Writes nothing."""
    accelerator = start_accelerator(recipe)
    material = read_material(recipe)
    space = ReportSpace(LSA_DIMENSIONS, recipe.train.seed)
    space.fit([material.tokenizer.segment(exam.report) for exam in material.splits["train"]])
    train = material.splits["train"]
    # As if it were trained, which fetches no weights.
    task: Any = build_task(recipe, material.tokenizer, plan.topics, space, training=train, trained=True)
    freeze_parts(recipe, task)
    batch_plan = batch_plan_of(recipe, plan.steps.processes)
    strategy = prepare(accelerator, recipe, task, batch_plan, lambda task: build_optimizer(recipe, task))
    times = time_steps(strategy, recipe, plan, material)

    settings, words = recipe.evaluate, round(plan.tokens.mean) - 1  # nothing writes the begin
    size = settings.batch_size
    some = material.splits["val"][:size]
    batch = collate([_sample(exam, [EOS], None, None, recipe) for exam in some]).to(accelerator.device)
    with strategy.full_params_model() as whole:
        seconds = {
            num_beams: _time_reports(accelerator, whole, batch, recipe, num_beams, words) / len(some)
            for num_beams in {settings.val_num_beams, settings.num_beams}
        }
    mine = {split: math.ceil(plan.exams[split] / plan.steps.processes) for split in ("val", "test")}
    step = statistics.median(times)
    training = step * plan.steps.total
    validations = plan.steps.validations * mine["val"] * seconds[settings.val_num_beams]
    evaluation = (mine["val"] + mine["test"]) * seconds[settings.num_beams]
    launch = describe_launch(accelerator, recipe)
    return Probe(
        device=launch["device"],
        precision=launch["precision"],
        processes=plan.steps.processes,
        steps_timed=len(times),
        step_s=step,
        fastest_s=min(times),
        slowest_s=max(times),
        exams_per_s=plan.steps.batch_size / step,
        training_s=training,
        validations_s=validations,
        evaluation_s=evaluation,
        together_s=training + validations + evaluation,
    )


def time_steps(strategy: Strategy, recipe: Recipe, plan: Plan, material: Material) -> list[float]:
    """Seconds of real steps on the first exams of training: their views and tokens, in their order, random pixels."""
    batch_plan = batch_plan_of(recipe, plan.steps.processes)
    plugin = None if recipe.data.augment is None else build_plugin(recipe, "augment", recipe.data.augment)
    augment = batch_augment(plugin, recipe.train.seed, epoch=0)
    weights_L = weights_at(recipe, 0, plan.steps.total)
    exams = material.splits["train"]
    topics = itertools.cycle(range(plan.topics)) if plan.topics else itertools.repeat(None)
    micro_batches = itertools.cycle(batch_plan.epoch(len(exams), recipe.train.seed, 0))
    began, times = time.monotonic(), []
    strategy.task.train()
    bar = progress_bar(range(WARM_UP + STEPS), total=WARM_UP + STEPS, text="probing steps")
    for _ in bar:
        samples = [
            [
                _sample(exams[place], material.tokens[place], next(topics), plan.topics, recipe)
                for place in next(micro_batches)
            ]
            for _ in range(batch_plan.accumulation)
        ]
        started = time.monotonic()
        group = [collate(rows) for rows in samples]
        float(train_step(strategy, group, weights_L, augment).loss)  # waits for the device
        times.append(time.monotonic() - started)
        if len(times) > 1 and time.monotonic() - began > STEPS_S:
            break
    bar.close()
    return times[min(WARM_UP, len(times) - 1) :]


def _sample(exam: Exam, tokens: list[int], topic: int | None, topics: int | None, recipe: Recipe) -> Sample:
    shape = (len(exam.views), recipe.data.channels, recipe.data.image_size, recipe.data.image_size)
    image_VCHW = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    weights = None if topic is None or topics is None else np.eye(topics, dtype=np.float32)[topic]
    return Sample(exam.id, image_VCHW, tokens, topic, weights)


class _Endless:
    """A decoder that ends no report, so that its untrained one writes as many words as it is asked for."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.init_cache = decoder, decoder.init_cache

    def step(self, tokens_B: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits_BW, state = self.decoder.step(tokens_B, state)
        return logits_BW.index_fill(1, torch.tensor([EOS], device=logits_BW.device), float("-inf")), state


def _time_reports(
    accelerator: Accelerator, task: Any, batch: Batch, recipe: Recipe, num_beams: int, words: int
) -> float:
    """Seconds to write reports of so many words about a batch; of a slow model, fewer are written and scaled up."""

    def write(length: int) -> float:
        started = time.monotonic()
        with accelerator.autocast(), torch.no_grad():
            generate(
                _Endless(task.decoder),
                task.features(batch),
                max_length=length,
                num_beams=num_beams,
                length_penalty=recipe.evaluate.length_penalty,
                no_repeat_ngram_size=recipe.evaluate.no_repeat_ngram_size,
            )
        return time.monotonic() - started

    words = max(1, words)
    write(1)  # warm
    few = min(FEW_WORDS, words)
    each = write(few) / few
    length = min(words, max(few, int(REPORTS_S / each)))
    return write(length) * words / length

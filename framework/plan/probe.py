"""Estimates the time of a run from a few real steps and one generated batch, on random images, in half a minute."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from framework.build import build_augment, build_optimizer, build_task, freeze_parts, loss_targets
from framework.data.loading import Sample, collate
from framework.distributed.launch import describe_launch, start_accelerator
from framework.distributed.prepare import prepare
from framework.distributed.strategy import Strategy
from framework.exam import EOS, Batch, Exam
from framework.models.generation import generate
from framework.plan.inputs import PlanInputs, read_inputs
from framework.plan.plan import Plan, batch_plan_of
from framework.recipe import Recipe
from framework.runtime.live import ProgressBar
from framework.text.lsa import LSA_DIMENSIONS, ReportSpace
from framework.train_step import batch_augment, train_step, weights_at

WARM_UP, STEPS = 2, 20
STEPS_S, REPORTS_S = 14.0, 5.0  # approximate time limits
FEW_WORDS = 4
NOT_COUNTED = (
    "decoding of images (once; then cached)",
    "distillation (once; then cached)",
    "downloads of pretrained weights",
    "final scores and baselines",
    "checkpoints",
    "communication between processes",
)


@dataclass(frozen=True)
class Probe:
    """Times in seconds, measured on one process with the load of one of `processes`."""

    device: str
    precision: str
    processes: int
    steps_timed: int
    step_s: float  # the median
    fastest_s: float  # much less than the slowest if others use the machine
    slowest_s: float
    exams_per_s: float  # of all processes
    training_s: float
    validations_s: float  # of all validations
    evaluation_s: float  # final, on val and test
    total_s: float
    not_counted: tuple[str, ...] = NOT_COUNTED


def probe(recipe: Recipe, plan: Plan) -> Probe:
    """Times the recipe's task on this device. Writes nothing."""
    accelerator = start_accelerator(recipe)
    inputs = read_inputs(recipe)
    space = ReportSpace(LSA_DIMENSIONS, recipe.train.seed)
    space.fit([inputs.tokenizer.segment(exam.report) for exam in inputs.splits["train"]])
    train = inputs.splits["train"]
    # trained=True: pretrained weights are not downloaded.
    task: Any = build_task(recipe, inputs.tokenizer, plan.topics, space, training=train, trained=True)
    freeze_parts(recipe, task)
    batch_plan = batch_plan_of(recipe, plan.steps.processes)
    strategy = prepare(accelerator, recipe, task, batch_plan, lambda task: build_optimizer(recipe, task))
    times = time_steps(strategy, recipe, plan, inputs)

    settings, words = recipe.evaluate, round(plan.tokens.mean) - 1  # BOS is not generated
    size = settings.batch_size
    exams = inputs.splits["val"][:size]
    batch = collate([_sample(exam, [EOS], None, None, {}, recipe) for exam in exams]).to(accelerator.device)
    with strategy.full_params_model() as full:
        seconds = {
            num_beams: _time_reports(accelerator, full, batch, recipe, num_beams, words) / len(exams)
            for num_beams in {settings.val_num_beams, settings.num_beams}
        }
    per_process = {split: math.ceil(plan.exams[split] / plan.steps.processes) for split in ("val", "test")}
    step = statistics.median(times)
    training = step * plan.steps.total
    validations = plan.steps.validations * per_process["val"] * seconds[settings.val_num_beams]
    evaluation = (per_process["val"] + per_process["test"]) * seconds[settings.num_beams]
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
        total_s=training + validations + evaluation,
    )


def time_steps(strategy: Strategy, recipe: Recipe, plan: Plan, inputs: PlanInputs) -> list[float]:
    """Seconds of real steps on the first training exams in their order, with random pixels."""
    batch_plan = batch_plan_of(recipe, plan.steps.processes)
    plugin = build_augment(recipe)
    augment = batch_augment(plugin, recipe.train.seed, epoch=0, copies=strategy.task.compares_copies)
    weights_L = weights_at(recipe, 0, plan.steps.total)
    exams = inputs.splits["train"]
    targets = loss_targets(strategy.task, [exam.report for exam in exams])
    topics = itertools.cycle(range(plan.topics)) if plan.topics else itertools.repeat(None)
    micro_batches = itertools.cycle(batch_plan.epoch(len(exams), recipe.train.seed, 0))
    probe_start, times = time.monotonic(), []
    strategy.task.train()
    bar = ProgressBar(range(WARM_UP + STEPS), total=WARM_UP + STEPS, text="probing steps")
    for _ in bar:
        samples = [
            [
                _sample(
                    exams[place],
                    inputs.tokens[place],
                    next(topics),
                    plan.topics,
                    {loss: rows[place] for loss, rows in targets.items()},
                    recipe,
                )
                for place in next(micro_batches)
            ]
            for _ in range(batch_plan.accumulation)
        ]
        start = time.monotonic()
        group = [collate(rows) for rows in samples]
        float(train_step(strategy, group, weights_L, augment).loss)  # waits for the device
        times.append(time.monotonic() - start)
        if len(times) > 1 and time.monotonic() - probe_start > STEPS_S:
            break
    bar.close()
    return times[min(WARM_UP, len(times) - 1) :]


def _sample(
    exam: Exam,
    tokens: list[int],
    topic: int | None,
    topics: int | None,
    targets: Mapping[str, np.ndarray],
    recipe: Recipe,
) -> Sample:
    shape = (len(exam.views), recipe.data.channels, recipe.data.image_size, recipe.data.image_size)
    image_VCHW = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    weights = None if topic is None or topics is None else np.eye(topics, dtype=np.float32)[topic]
    return Sample(exam.id, image_VCHW, tokens, topic, weights, targets)


class _NoEos:
    """Wraps a decoder so that it never generates EOS, and every report has the maximum length."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.init_cache = decoder, decoder.init_cache

    def step(self, tokens_B: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits_BW, state = self.decoder.step(tokens_B, state)
        return logits_BW.index_fill(1, torch.tensor([EOS], device=logits_BW.device), float("-inf")), state


def _time_reports(
    accelerator: Accelerator, task: Any, batch: Batch, recipe: Recipe, num_beams: int, words: int
) -> float:
    """Seconds to generate reports of `words` words; a slow model generates fewer, and the time is scaled up."""

    def generate_s(length: int) -> float:
        start = time.monotonic()
        with accelerator.autocast(), torch.no_grad():
            generate(
                _NoEos(task.decoder),
                task.features(batch),
                num_beams=num_beams,
                **{**recipe.evaluate.search, "max_length": length},
            )
        return time.monotonic() - start

    words = max(1, words)
    generate_s(1)  # warm-up
    few = min(FEW_WORDS, words)
    each = generate_s(few) / few
    length = min(words, max(few, int(REPORTS_S / each)))
    return generate_s(length) * words / length

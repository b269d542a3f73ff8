"""A plan and a probe as people read them: headers, and rows of text."""

from __future__ import annotations

from framework.plan.model import Activations
from framework.plan.probe import Probe
from framework.plan.whole import Plan

UNKNOWN = "not known"
PART_HEADER = ("part", "parameters", "trainable", "buffers", "memory")
MEMORY_HEADER = ("strategy", "chosen", "weights", "gradients", "optimizer", "activations", "together")
MEMORY_NOTES = (
    "Memory is of each process, an estimate by ZeRO (arXiv 1910.02054) and FSDP's full shard (arXiv 2304.11277).",
    "Activations are of the largest micro-batch that can come, with a CPU's kernels; a GPU's attention keeps less.",
    "Not in it: work space of kernels, fragmentation, the batch itself, what a backward holds for a moment, buckets of "
    "gradients, and the largest layer, which zero3 and fsdp gather whole.",
)


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    steps, tokens, views = plan.steps, plan.tokens, plan.views
    cut = f"{steps.micro_batch_size} x {steps.processes} processes x {steps.accumulation} accumulated"
    return [
        ("exams", ", ".join(f"{count:,} {split}" for split, count in plan.exams.items())),
        ("views an exam", f"{views.least} to {views.most}, {views.mean:.1f} on average"),
        ("vocabulary", f"{plan.words:,} words"),
        ("topics", "none" if plan.topics is None else str(plan.topics)),
        ("tokens a report", f"{tokens.mean:.1f} on average, 95 of 100 up to {tokens.p95}, longest {tokens.longest}"),
        ("reports cut", f"{tokens.cut:,} longer than evaluate.max_length"),
        ("tokens", f"{tokens.total:,} in the training reports, {plan.tokens_seen:,} over all epochs"),
        ("global batch", f"{steps.batch_size} exams = {cut}"),
        ("steps", f"{steps.total:,} = {steps.epochs} epochs x {steps.an_epoch:,}"),
        ("checkpoints", f"{steps.checkpoints:,} written"),
        ("validations", f"{steps.validations:,}"),
        ("optimizer", f"{plan.optimizer_bytes:g} bytes a trainable parameter"),
        ("activations", _activations(plan.activations)),
    ]


def part_rows(plan: Plan) -> list[tuple[str, ...]]:
    return [
        (
            part.name,
            f"{part.parameters:,}",
            f"{part.trainable:,}",
            f"{part.buffers:,}",
            in_bytes(part.parameter_bytes + part.buffer_bytes),
        )
        for part in plan.parts
    ]


def memory_rows(plan: Plan) -> list[tuple[str, ...]]:
    return [
        (
            row.strategy,
            "yes" if row.chosen else "no",
            *map(in_bytes, (row.weights, row.gradients, row.optimizer, row.activations, row.together)),
        )
        for row in plan.memory
    ]


def probe_rows(probe: Probe) -> list[tuple[str, str]]:
    step = f"{probe.step_s:.3g} s, median of {probe.steps_timed} from {probe.fastest_s:.3g} to {probe.slowest_s:.3g} s"
    return [
        ("measured on", f"{probe.device}, {probe.precision}, one process with the share of one of {probe.processes}"),
        ("a step", f"{step}; {probe.exams_per_s:.3g} exams/s"),
        ("training", in_time(probe.training_s)),
        ("validations", in_time(probe.validations_s)),
        ("evaluation at the end", in_time(probe.evaluation_s)),
        ("together", in_time(probe.together_s)),
        ("not counted", "; ".join(probe.not_counted)),
    ]


def in_bytes(count: int | None) -> str:
    """Powers of 1024, three digits."""
    if count is None:
        return UNKNOWN
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.3g} {units[0]}"


def in_time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 20:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _activations(found: Activations) -> str:
    if found.bytes is None:
        return f"{UNKNOWN}: {found.unknown}"
    batch = f"{found.exams} exams of {found.views} views and {found.tokens} tokens in {found.precision}"
    return f"{in_bytes(found.bytes)} kept for backward by {batch}"

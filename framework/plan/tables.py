"""Tables of a plan and a probe: headers, and rows of text."""

from __future__ import annotations

from framework.plan.model import Activations
from framework.plan.plan import Plan
from framework.plan.probe import Probe

UNKNOWN = "not known"
PART_HEADER = ("part", "parameters", "trainable", "buffers", "memory")
MEMORY_HEADER = ("strategy", "chosen", "weights", "gradients", "optimizer", "activations", "total")
MEMORY_NOTES = (
    "Memory per process, estimated after ZeRO (arXiv 1910.02054) and FSDP's full shard (arXiv 2304.11277).",
    "Activations: of the largest micro-batch, with the kernels of a CPU; attention on a GPU saves less.",
    "Not included: kernel workspace, fragmentation, the batch, temporary tensors of backward, gradient buckets, "
    "and the largest layer, which zero3 and fsdp gather.",
)


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    steps, tokens, views = plan.steps, plan.tokens, plan.views
    factors = f"{steps.micro_batch_size} x {steps.processes} processes x {steps.accumulation} accumulated"
    return [
        ("exams", ", ".join(f"{count:,} {split}" for split, count in plan.exams.items())),
        ("views per exam", f"{views.least} to {views.most}, {views.mean:.1f} on average"),
        ("vocabulary", f"{plan.words:,} words"),
        ("topics", "none" if plan.topics is None else str(plan.topics)),
        ("tokens per report", f"{tokens.mean:.1f} on average, 95th percentile {tokens.p95}, longest {tokens.longest}"),
        ("reports truncated", f"{tokens.truncated:,} longer than evaluate.max_length"),
        ("tokens", f"{tokens.total:,} in the training reports, {plan.tokens_seen:,} over all epochs"),
        ("global batch", f"{steps.batch_size} exams = {factors}"),
        ("steps", f"{steps.total:,} = {steps.epochs} epochs x {steps.per_epoch:,}"),
        ("checkpoints", f"{steps.checkpoints:,} written"),
        ("validations", f"{steps.validations:,}"),
        ("optimizer", f"{plan.optimizer_bytes:g} bytes per trainable parameter"),
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
            *map(in_bytes, (row.weights, row.gradients, row.optimizer, row.activations, row.total)),
        )
        for row in plan.memory
    ]


def probe_rows(probe: Probe) -> list[tuple[str, str]]:
    step = f"{probe.step_s:.3g} s, median of {probe.steps_timed} from {probe.fastest_s:.3g} to {probe.slowest_s:.3g} s"
    return [
        ("measured on", f"{probe.device}, {probe.precision}, one process with the load of one of {probe.processes}"),
        ("step", f"{step}; {probe.exams_per_s:.3g} exams/s"),
        ("training", in_time(probe.training_s)),
        ("validations", in_time(probe.validations_s)),
        ("final evaluation", in_time(probe.evaluation_s)),
        ("total", in_time(probe.total_s)),
        ("not counted", "; ".join(probe.not_counted)),
    ]


def in_bytes(count: int | None) -> str:
    """In KiB, MiB ... with three digits."""
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


def _activations(largest: Activations) -> str:
    if largest.bytes is None:
        return f"{UNKNOWN}: {largest.unknown}"
    batch = f"{largest.exams} exams of {largest.views} views and {largest.tokens} tokens in {largest.precision}"
    return f"{in_bytes(largest.bytes)} for backward of {batch}"

"""What surrounds training: the processes, the run's folder, its components, what is printed first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from framework.build import RunComponents, build_components
from framework.checkpoint.format import CheckpointError
from framework.data.leakage import require_unseen
from framework.data.loading import BatchPlan
from framework.distributed.collectives import gather, on_main
from framework.distributed.gather_exams import micro_batch_notice
from framework.distributed.heartbeat import HangMonitor
from framework.distributed.launch import describe_launch, launch_id, start_accelerator
from framework.distributed.resolve import precision_notice
from framework.distributed.strategy import Strategy
from framework.models.external_weights import print_saved
from framework.recipe import PortableRecipe, Recipe, load_saved_recipe, portable
from framework.registry.trust import trust, trust_commands, unmarked, unmarked_commands
from framework.run.folder import OpenedRun, lock_released, open_run, remove_refused_run, topics_to_keep
from framework.run.init_from import Source, find_initial_weights, initial_weights
from framework.run.listing import FAILURE
from framework.run.throughput import peak_memory_gib
from framework.run.trackers import require_trackers
from framework.run.tracking import COST, write_environment, write_json
from framework.runtime.console import print0
from framework.runtime.errors import Stopped, first_line
from framework.runtime.files import atomic_write
from framework.runtime.signals import StopSignals
from framework.topics.distill import topic_changes


@dataclass
class TrainingRun:
    """A run that is ready to train.

    Attributes:
        opened: its folder, and the checkpoint that it resumes from.
        source: the model whose weights it starts from; None if it starts from scratch or resumes.
        saved_recipe: the recipe as it is stored with the run and its models.
        launch: device, processes, strategy and precision, as stored with the run.
        started: whether training has started; a run that is refused earlier leaves no folder.
    """

    recipe: Recipe
    accelerator: Accelerator
    signals: StopSignals
    monitor: HangMonitor
    opened: OpenedRun
    saved_recipe: PortableRecipe
    launch: dict[str, Any]
    source: Source | None = None
    components: RunComponents = field(init=False)
    started: bool = False

    @property
    def folder(self) -> Path:
        return self.opened.folder

    @property
    def launch_line(self) -> str:
        """`launch` to print."""
        return "  ".join(f"{key} {value}" for key, value in self.launch.items() if key != "id")

    @property
    def model_before(self) -> Path | None:
        """The model that training continues from; None if it starts from scratch."""
        if self.opened.checkpoint is not None:
            return self.opened.checkpoint / "model"
        return None if self.source is None else self.source.model


@contextmanager
def open_run_for_training(recipe: Recipe) -> Iterator[TrainingRun]:
    """Starts the processes, opens the folder, and builds the parts; ends the process group after success."""
    require_trackers(recipe)
    signals = StopSignals()
    signals.listen()
    accelerator = start_accelerator(recipe)
    with lock_released(), HangMonitor(accelerator, recipe.distributed.timeout) as monitor:
        opened = on_main(accelerator, lambda: open_run(recipe))
        launch = {**describe_launch(accelerator, recipe), "id": launch_id()}
        run = TrainingRun(recipe, accelerator, signals, monitor, opened, portable(recipe), launch)
        _print_launch(run)
        if accelerator.is_main_process:
            write_environment(run.folder, launch)
            run.saved_recipe.write(run.folder)
            trust(unmarked(recipe.plugin_files))  # the user has named them
            trust_commands(unmarked_commands(recipe.commands))
            atomic_write(run.folder / "overrides.txt", "".join(f"{word}\n" for word in recipe.overrides))
        try:
            # A mistake in init_from is reported before the images are decoded.
            run.source = find_initial_weights(accelerator, recipe, opened)
            monitor.at("preparing exams and topics", others_wait=True)
            kept = topics_to_keep(recipe, opened)
            run.components = build_components(recipe, accelerator, run=None if kept else run.folder)
            on_main(accelerator, lambda: _require_same_data(run, kept))
            launch |= initial_weights(accelerator, recipe, run.components, opened, run.source)
            yield run
        except Exception as error:
            if accelerator.is_main_process and run.started and not isinstance(error, Stopped):
                with contextlib.suppress(OSError):  # of a full disk, which may be the reason
                    write_json(run.folder / FAILURE, {"reason": first_line(error)})
            elif accelerator.is_main_process and not run.started and isinstance(error, ValueError):
                remove_refused_run(opened)
            raise
    accelerator.end_training()


def _print_launch(run: TrainingRun) -> None:
    print0(f"run {run.folder}   {run.launch_line}")
    for notice in filter(None, (*run.recipe.notices, precision_notice(run.recipe))):
        print0(f"notice: {notice}")


def record_settings(run: TrainingRun, strategy: Strategy, batch_plan: BatchPlan, steps: int) -> None:
    """Adds how a batch is divided and what the strategy does to `run.launch`, and writes environment.json again."""
    sizes = {name: getattr(batch_plan, name) for name in ("batch_size", "micro_batch_size", "accumulation")}
    run.launch |= {**sizes, **strategy.effective_config()}
    if run.accelerator.is_main_process:
        write_environment(run.folder, {**run.launch, "steps": steps, "parameters": count_parameters(strategy)})


def print_sizes(run: TrainingRun, strategy: Strategy, batch_plan: BatchPlan, steps: int) -> None:
    """Prints exams, words, parameters, how a batch is divided, and where results depend on that."""
    components = run.components
    exams = ", ".join(f"{len(exams)} {name}" for name, exams in components.exams.items())
    topics = f", {components.topics.count} topics" if components.topics else ""
    left_out = f" ({components.left_out} left out: broken images)" if components.left_out else ""
    millions = count_parameters(strategy) / 1e6
    print0(f"exams {exams}{left_out}; {len(components.tokenizer)} words{topics}; {millions:.1f} M parameters")
    division = (
        f"{batch_plan.micro_batch_size} x {batch_plan.processes} processes x {batch_plan.accumulation} accumulated"
    )
    print0(f"{steps} steps of {batch_plan.batch_size} exams = {division}")
    print_saved(strategy.task, strategy.shapes)
    for notice in (strategy.batch_norm_notice(batch_plan), micro_batch_notice(strategy.task.losses, batch_plan)):
        if notice:
            print0(f"notice: {notice}")


def count_parameters(strategy: Strategy) -> int:
    return sum(shape.numel() for shape in strategy.shapes.values())


def write_cost(run: TrainingRun, strategy: Strategy) -> None:
    """Writes parameters and peak memory, the largest over all processes. Called on every process."""
    memory = max(gather(run.accelerator, [peak_memory_gib(run.accelerator.device)]))
    if run.accelerator.is_main_process:
        write_json(run.folder / COST, {"parameters": count_parameters(strategy), "memory_gib": memory})


def _require_same_data(run: TrainingRun, topics: Path | None) -> None:
    """Checks that a resumed run has the same patients and topics, which the recipe alone does not decide.

    Args:
        topics: topics.json of the run; None if the topics may differ.

    Raises:
        UserError: patients of val or test were seen in training, or topics differ.
    """
    recipe, checkpoint = run.recipe, run.opened.checkpoint
    if checkpoint is not None:
        model = checkpoint / "model"
        require_unseen("resume", model, load_saved_recipe(model / "recipe.yaml"), recipe, run.components.exams)
    if topics is not None and (differing := topic_changes(topics, run.components.topics)):
        raise CheckpointError(
            "topics-differ",
            f"{differing}; topics change when data.cache_dir ({recipe.data.cache_dir}) is cleared, or with other "
            "versions of libraries or of Sonoscribe",
            place=str(topics),
            hint=f"Restore those, start a new run from this model with 'resume=never init_from={run.folder}', or "
            "resume all the same with 'resume_ignore=[distiller]'.",
        )

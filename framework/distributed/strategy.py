"""How the processes hold the task while it trains: what each keeps of weights, gradients and optimizer state.

The engine sees one interface. ddp.py, zero.py and fsdp.py fill in what differs: how a gradient is made and applied, and
which piece of each parameter this process holds. Everything else follows from the pieces, and stands here once: the
running average, the whole weights for generation and export, saving, and loading under any other strategy.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from framework.checkpoint.format import SavedState
from framework.data.loading import BatchPlan
from framework.distributed.collectives import broadcast, on_main
from framework.exam import Batch
from framework.models.blocks import blocks_of_task, enable_activation_checkpointing
from framework.models.external_weights import unsaved_names
from framework.recipe import Recipe, RecipeError
from framework.task import ReportTask, TaskOutput


@dataclass
class Shard:
    """What this process holds of one parameter.

    `weights` is fp32 and the values that the optimizer works on: the whole parameter, or [n] of its values, flattened,
    from `start` on; n may be 0. `states` are the optimizer's of the same shape, `scalars` those of none (Adam's step).
    """

    start: int
    weights: Tensor
    states: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Strategy(ABC):
    """A task and its optimizer, spread over the processes.

    Args:
        task: on the CPU, the same on every process.
        build_optimizer: makes the recipe's optimizer of a task's parameters.
    """

    optimizer: torch.optim.Optimizer  # the recipe's own, below whatever wraps it
    is_replicated: bool = False  # whether every process holds whole weights and states

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, task: ReportTask, build_optimizer: Callable[[nn.Module], Any]
    ) -> None:
        self.accelerator, self.recipe, self.task = accelerator, recipe, task
        # Every process begins with the main process's weights, whatever a plugin drew them from.
        broadcast(accelerator, [*task.parameters(), *task.buffers()])
        self.shapes = {name: parameter.shape for name, parameter in task.named_parameters()}
        self.aliases = _aliases(task)
        self.unsaved = unsaved_names(task)
        self.decay = recipe.train.ema_decay
        self.steps = 0  # calls of update_ema
        self._plain: ReportTask | None = None if self._evaluates_in_place else _without_weights(task)
        if recipe.distributed.activation_checkpointing:
            blocks = blocks_of_task(task)
            if not blocks:
                raise RecipeError(
                    "distributed.activation_checkpointing: neither encoder nor decoder has a list of blocks "
                    "(nn.ModuleList, nn.Sequential) to compute again; expected false"
                )
            for block in blocks:
                enable_activation_checkpointing(block)
        together = recipe.distributed.sync_batch_norm == "auto" and accelerator.num_processes > 1
        if together and accelerator.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(task)
        self._wrap(build_optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average: dict[str, Tensor] = {}
        if self.decay is not None:
            self.average = {name: shard.weights.clone() for name, shard in self.local_shards() if self._learns(name)}
        self._shared_buffers = [
            buffer
            for part in task.modules()
            if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm)
            for buffer in part.buffers(recurse=False)
        ]

    @property
    def _evaluates_in_place(self) -> bool:
        return self.is_replicated and self.decay is None

    # What differs.

    @abstractmethod
    def _wrap(self, build_optimizer: Callable[[nn.Module], Any]) -> None:
        """Spreads `self.task`, and sets `self.optimizer`."""

    @abstractmethod
    def __call__(self, batch: Batch) -> TaskOutput:
        """The task's output for a micro-batch."""

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: by the `last` one of a step, gradients must be exchanged."""
        return nullcontext()

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds to the gradients, which come to be averaged over the processes."""

    @abstractmethod
    def step(self) -> Tensor:
        """Clips the gradient, updates the weights, and clears the gradient.

        Returns:
            the norm of the gradient before clipping, 0-dim on the device. If it is not finite, no weight changes.
        """

    @abstractmethod
    def local_shards(self) -> Iterator[tuple[str, Shard]]:
        """What this process holds of each parameter, by its name in the task; the same names on every process."""

    @abstractmethod
    def load_shard(self, name: str, whole: Tensor, states: Mapping[str, Tensor], scalars: Mapping[str, Tensor]) -> None:
        """Overwrites this process's piece of a parameter and of its optimizer state with that of whole ones."""

    def _loaded(self) -> None:  # noqa: B027 - most have nothing to do
        """After all were put."""

    # What is the same.

    @property
    def max_grad_norm(self) -> float:
        """The largest norm of the gradient."""
        train = self.recipe.train
        return math.inf if train.max_grad_norm is None or train.clip_by == "value" else train.max_grad_norm

    def clip_values(self, gradients: Iterable[Tensor]) -> None:
        """Cuts each number of the gradient, where the recipe limits those; `gradients` are of this process's pieces."""
        if self.recipe.train.clip_by == "value":
            assert self.recipe.train.max_grad_norm is not None, "check.py refuses a limit of nothing"
            for gradient in gradients:
                gradient.clamp_(-self.recipe.train.max_grad_norm, self.recipe.train.max_grad_norm)

    def set_lr(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor

    def begin_step(self) -> None:
        """Batch statistics that are not synchronized are the main process's, on every process."""
        broadcast(self.accelerator, self._shared_buffers)

    def update_if_finite(self, optimizer: Any, norm: Tensor) -> None:
        """Calls `optimizer.step()` unless the norm of the gradient is not finite.

        A fused optimizer skips the update on the device; for any other the host waits for the norm.
        """
        inner: Any = self.optimizer
        if norm.device.type != "cpu" and getattr(inner, "_step_supports_amp_scaling", False):
            inner.found_inf = (~torch.isfinite(norm)).float()  # as GradScaler does
            optimizer.step()
            del inner.found_inf
        elif bool(torch.isfinite(norm)):
            optimizer.step()

    def update_ema(self, finite: Tensor) -> None:
        """Moves the exponential moving average toward the weights, unless the step was skipped. The decay starts low.

        Args:
            finite: whether the weights were updated, 0-dim bool.

        Source:
            Polyak and Juditsky 1992; the decay of step t, min(decay, (1 + t) / (10 + t)), is that of tf.train's
            ExponentialMovingAverage.
        """
        self.steps += 1
        if self.decay is None:
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weight = torch.where(finite, 1 - decay, 0.0)
        for name, shard in self.local_shards():
            if name in self.average:
                self.average[name].lerp_(shard.weights, weight.to(shard.weights))

    @contextmanager
    def full_params_model(self) -> Iterator[ReportTask]:
        """The task with whole weights on every process (the running average, if there is one), to write reports with.

        No process then waits for another while writing, so those with fewer exams cannot hang, and words are not paid
        with a message for every layer.
        """
        self.begin_step()
        if self._plain is None:
            training = self.task.training
            try:
                yield self.task.eval()
            finally:
                self.task.train(training)
            return
        for name, shard in self.local_shards():
            whole = self._whole(name, shard.start, self.average.get(name, shard.weights), on_all=True)
            _set_parameter(self._plain, name, nn.Parameter(whole, requires_grad=False))
        for alias, name in self.aliases.items():
            _set_parameter(self._plain, alias, self._plain.get_parameter(name))
        buffers = dict(self.task.named_buffers())
        for name, buffer in self._plain.named_buffers():
            buffer.data = buffers[name].detach().to(self.accelerator.device)
        try:
            yield self._plain
        finally:
            _forget_weights(self._plain)

    def state(self) -> dict[str, Tensor]:
        """Everything that training goes on from, whole and on the CPU, on the main process; on the others, nothing.
        Fetched weights that stay frozen are not in it (pretrained.py).

        All processes take part. Names: `weights/`, `average/`, `buffers/`, `optimizer/<key>/` and `scalars/<key>/`
        before that of the parameter.
        """
        main, found = self.accelerator.is_main_process, {}
        for name, shard in self.local_shards():
            if name in self.unsaved:
                continue
            parts = {f"weights/{name}": shard.weights}
            if name in self.average:
                parts[f"average/{name}"] = self.average[name]
            parts |= {f"optimizer/{key}/{name}": state for key, state in shard.states.items()}
            for key, part in parts.items():
                whole = self._whole(name, shard.start, part, on_all=False)
                if main:
                    found[key] = _copied(whole)
            if main:
                found |= {f"scalars/{key}/{name}": _copied(value) for key, value in shard.scalars.items()}
        if main:
            kept = set(self.task.state_dict(keep_vars=True)) - self.unsaved
            found |= {f"buffers/{name}": _copied(b) for name, b in self.task.named_buffers() if name in kept}
        return found

    @torch.no_grad()
    def load(self, saved: SavedState | None, step: int) -> None:
        """Puts a saved state in place, under whatever strategy and on however many processes it was made.

        Args:
            saved: on the main process; the others take it from there.
        """
        forms = on_main(self.accelerator, lambda: {} if saved is None else saved.meta_tensors())
        self.steps = step

        def received(key: str) -> Tensor:
            value = saved[key] if saved is not None else torch.empty_like(forms[key], device="cpu")
            value = value.to(self.accelerator.device)
            broadcast(self.accelerator, [value])
            return value

        kept: dict[tuple[str, str], list[str]] = {}  # optimizer or scalars, and the parameter -> keys
        for key in forms:
            kind, _, rest = key.partition("/")
            kept.setdefault((kind, rest.partition("/")[2]), []).append(key)
        for name, shape in self.shapes.items():
            if name in self.unsaved:
                continue
            states, scalars = (
                {key.split("/")[1]: received(key) for key in kept.get((kind, name), ())}
                for kind in ("optimizer", "scalars")
            )
            self.load_shard(name, received(f"weights/{name}").view(shape), states, scalars)
        for name, shard in self.local_shards():
            if name in self.average:
                # A run that had no average yet begins it here.
                key = f"average/{name}" if f"average/{name}" in forms else f"weights/{name}"
                whole = received(key).view(self.shapes[name])
                self.average[name].copy_(_part(whole, shard.start, shard.weights))
        for name, buffer in self.task.named_buffers():
            if f"buffers/{name}" in forms:
                buffer.copy_(received(f"buffers/{name}"))
        self._loaded()

    def export_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights and buffers of a state by name: averages where there are, tied weights twice."""
        weights: dict[str, Tensor] = {}
        for kind in ("weights/", "average/", "buffers/"):  # an average stands in for the weights that it is of
            weights |= {key.removeprefix(kind): value for key, value in state.items() if key.startswith(kind)}
        # Copies, since a safetensors file holds no bytes under two names.
        return weights | {alias: weights[name].clone() for alias, name in self.aliases.items() if name in weights}

    def batch_norm_notice(self, batch_plan: BatchPlan) -> str | None:
        """What to say where batch normalization makes results depend on how a batch is cut."""
        norms = [part for part in self.task.modules() if isinstance(part, _BatchNorm)]
        synchronized = bool(norms) and not self._shared_buffers
        seen = batch_plan.micro_batch_size * (batch_plan.processes if synchronized else 1)
        if not norms or seen == batch_plan.batch_size:
            return None
        return (
            f"batch normalization sees {seen} exams at a time, not {batch_plan.batch_size}, so results depend on this "
            "cut. An encoder without it (model.encoder.norm=group) does not"
        )

    def effective_config(self) -> dict[str, Any]:
        """What took effect below, to be stored with the run."""
        return {}

    def scaler(self) -> Any:
        """What keeps fp16 gradients from vanishing; None in other formats."""
        return self.accelerator.scaler

    def _learns(self, name: str) -> bool:
        return self.task.get_parameter(name).requires_grad

    def _whole(self, name: str, start: int, part: Tensor, *, on_all: bool) -> Tensor:
        """A parameter (or its average, or a state of it) from the pieces of all processes."""
        if self.is_replicated:
            return part.detach()
        device, shape = self.accelerator.device, self.shapes[name]
        whole = torch.zeros(shape.numel(), device=device)
        whole[start : start + part.numel()] = part.detach().to(device)
        if self.accelerator.num_processes > 1:
            # No two pieces overlap, so adding them up puts them together.
            dist.all_reduce(whole) if on_all else dist.reduce(whole, dst=0)
        return whole.view(shape)


def scalars_for(
    optimizer: torch.optim.Optimizer, scalars: Mapping[str, Tensor], parameter: Tensor
) -> dict[str, Tensor]:
    """Steps are counted on the CPU, unless the update is one kernel on the device."""
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return {key: value.to(parameter.device if on_device else "cpu") for key, value in scalars.items()}


def _part(whole: Tensor, start: int, like: Tensor) -> Tensor:
    """The piece of a whole tensor that `like` is."""
    if like.shape == whole.shape:
        return whole
    return whole.reshape(-1)[start : start + like.numel()].view(like.shape)


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and safe from what training does next."""
    there = tensor.detach().to("cpu", copy=True)
    return there.contiguous()


def _aliases(task: nn.Module) -> dict[str, str]:
    """Second names of tied parameters, to the first."""
    first: dict[int, str] = {}
    again = {}
    for name, parameter in task.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            again[name] = first[id(parameter)]
    return again


def _without_weights(task: ReportTask) -> ReportTask:
    """A copy whose parameters hold nothing yet; buffers are copied."""
    memo = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in task.parameters()
    }
    return copy.deepcopy(task, memo).eval()


def _set_parameter(task: nn.Module, name: str, parameter: nn.Parameter) -> None:
    home, _, last = name.rpartition(".")
    setattr(task.get_submodule(home), last, parameter)


def _forget_weights(task: nn.Module) -> None:
    for name, parameter in list(task.named_parameters(remove_duplicate=False)):
        empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        _set_parameter(task, name, empty)

"""How the processes hold a task in training: which weights, gradients and optimizer states each of them keeps.

ddp.py and fsdp.py hold parameters as tensors and DTensors, zero.py through DeepSpeed. The rest is here: the EMA, full
weights for generation and export, and a training state that loads under every other strategy.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from framework.checkpoint.format import SavedState
from framework.data.loading import BatchPlan
from framework.distributed.collectives import broadcast, on_main
from framework.exam import Batch
from framework.models.blocks import blocks_of_task, enable_activation_checkpointing
from framework.models.external_weights import unsaved_names
from framework.recipe import Recipe
from framework.runtime.errors import UserError
from framework.task import ReportTask, TaskOutput


class Strategy(ABC):
    """A task and its optimizer on the processes of a run.

    Args:
        task: on the CPU, the same on every process.
        build_optimizer: builds the recipe's optimizer of a task's parameters.
    """

    optimizer: torch.optim.Optimizer  # the recipe's own, below whatever wraps it
    is_replicated: bool = False  # whether every process holds full weights and optimizer states

    def __init__(
        self, accelerator: Accelerator, recipe: Recipe, task: ReportTask, build_optimizer: Callable[[nn.Module], Any]
    ) -> None:
        self.accelerator, self.recipe, self.task = accelerator, recipe, task
        # A plugin may draw its weights from a source that `set_seed` does not reach.
        broadcast(accelerator, [*task.parameters(), *task.buffers()])
        self.shapes = {name: parameter.shape for name, parameter in task.named_parameters()}
        self.aliases = _aliases(task)
        self.unsaved = unsaved_names(task)
        self.ema_decay = recipe.train.ema_decay
        self.steps = 0  # calls of update_ema
        self._full_copy = None if self.is_replicated and self.ema_decay is None else _without_weights(task)
        if recipe.distributed.activation_checkpointing:
            blocks = blocks_of_task(task)
            if not blocks:
                raise UserError(
                    "unsupported",
                    "neither encoder nor decoder has a list of blocks (nn.ModuleList, nn.Sequential) to recompute",
                    place="distributed.activation_checkpointing",
                    expected="false",
                )
            for block in blocks:
                enable_activation_checkpointing(block)
        synchronize = recipe.distributed.sync_batch_norm == "auto" and accelerator.num_processes > 1
        if synchronize and accelerator.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(task)
        self._wrap(build_optimizer)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.ema: dict[str, Tensor] = {}
        if self.ema_decay is not None:
            self.ema = {name: weights.clone() for name, weights in self.local_weights()}
        self._main_process_buffers = [
            buffer
            for part in task.modules()
            if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm)
            for buffer in part.buffers(recurse=False)
        ]

    # How a step is made.

    @abstractmethod
    def _wrap(self, build_optimizer: Callable[[nn.Module], Any]) -> None:
        """Wraps `self.task`, and sets `self.optimizer`."""

    @abstractmethod
    def __call__(self, batch: Batch) -> TaskOutput:
        """The task's output for a micro-batch."""

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of a micro-batch. Gradients must be synchronized by the `last` of a step."""
        return nullcontext()

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients, which are averaged over the processes."""

    @abstractmethod
    def step(self) -> Tensor:
        """Clips the gradient, updates the weights, and clears the gradient.

        Returns:
            the norm of the gradient before clipping, 0-dim on the device. If it is not finite, no weight changes.
        """

    # What a process holds; here of parameters that are tensors or DTensors.

    def local_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the fp32 weights that this process updates, by the name of their parameter, without communication.
        The names are the same on every process.
        """
        for name, parameter in self.task.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.detach()

    @torch.no_grad()
    def gather_full(self, name: str, local: Tensor) -> Tensor:
        """Gathers a tensor that is sharded as `local_weights` on every process."""
        if not isinstance(local, DTensor):
            return local
        full: Tensor = local.to(self.accelerator.device).full_tensor()  # type: ignore[attr-defined]
        return full

    def shard(self, name: str, full: Tensor) -> Tensor:
        """Returns this process's shard of a full tensor, as `local_weights` are sharded."""
        parameter = self.task.get_parameter(name)
        if isinstance(parameter, DTensor):
            sharded: Tensor = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
            return sharded.to(parameter.device)
        return torch.empty_like(parameter).copy_(full)  # in the parameter's memory format

    def full_weights(self, name: str) -> Tensor:
        """Gathers the fp32 weights of a parameter on every process."""
        return self.gather_full(name, self.task.get_parameter(name).detach())

    def full_optimizer_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gathers the optimizer's state of a parameter on every process: tensors of the parameter's shape, and others,
        such as Adam's `step`.
        """
        parameter = self.task.get_parameter(name)
        kept = self.optimizer.state.get(parameter, {})
        tensors = {key: value for key, value in kept.items() if isinstance(value, Tensor)}
        states = {key: value for key, value in tensors.items() if value.shape == parameter.shape and key != "step"}
        scalars = {key: value for key, value in tensors.items() if key not in states}
        return {key: self.gather_full(name, value) for key, value in states.items()}, scalars

    @torch.no_grad()
    def load_parameter(
        self, name: str, full: Tensor, states: Mapping[str, Tensor], scalars: Mapping[str, Tensor]
    ) -> None:
        """Overwrites a parameter and its optimizer state with full tensors, which are the same on every process."""
        parameter = self.task.get_parameter(name)
        parameter.copy_(self.shard(name, full))
        if states or scalars:
            sharded = {key: self.shard(name, value) for key, value in states.items()}
            self.optimizer.state[parameter] = {**_scalars_for(self.optimizer, scalars, parameter), **sharded}

    # The same under every strategy.

    @property
    def max_grad_norm(self) -> float:
        """Maximum norm of the gradient; infinite if the recipe does not clip by norm."""
        train = self.recipe.train
        return math.inf if train.max_grad_norm is None or train.clip_by == "value" else train.max_grad_norm

    def clip_values(self, gradients: Iterable[Tensor]) -> None:
        """Clips each value of this process's gradients if the recipe clips by value."""
        if self.recipe.train.clip_by == "value":
            assert self.recipe.train.max_grad_norm is not None, "check.py refuses clip_by=value without a limit"
            for gradient in gradients:
                gradient.clamp_(-self.recipe.train.max_grad_norm, self.recipe.train.max_grad_norm)

    def set_lr(self, factor: float) -> None:
        """Sets the learning rate of each parameter group to `factor` times its base rate."""
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = lr * factor

    def begin_step(self) -> None:
        """Broadcasts batch-norm statistics that are not synchronized from the main process."""
        broadcast(self.accelerator, self._main_process_buffers)

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

    @torch.no_grad()
    def update_ema(self, finite: Tensor) -> None:
        """Updates the EMA, unless the step was skipped. Its decay is min(ema_decay, (1 + t) / (10 + t)) in step t.

        Args:
            finite: whether the weights were updated, 0-dim bool.

        Source:
            Polyak and Juditsky 1992; warm-up of the decay: tf.train.ExponentialMovingAverage.
        """
        self.steps += 1
        if self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + self.steps) / (10 + self.steps))
        weight = torch.where(finite, 1 - decay, 0.0)
        for name, parameter in self.local_weights():
            local = _local(parameter)
            _local(self.ema[name]).lerp_(local, weight.to(local))

    @contextmanager
    def full_params_model(self) -> Iterator[ReportTask]:
        """Yields the task with full weights on every process (those of the EMA, if there is one) to generate with.

        No process waits for another while generating, so one with fewer exams cannot hang, and no token needs
        communication.
        """
        self.begin_step()
        if self._full_copy is None:
            training = self.task.training
            try:
                yield self.task.eval()
            finally:
                self.task.train(training)
            return
        for name in self.shapes:
            full = self.gather_full(name, self.ema[name]) if name in self.ema else self.full_weights(name)
            _set_parameter(self._full_copy, name, nn.Parameter(full, requires_grad=False))
        for alias, name in self.aliases.items():
            _set_parameter(self._full_copy, alias, self._full_copy.get_parameter(name))
        buffers = dict(self.task.named_buffers())
        for name, buffer in self._full_copy.named_buffers():
            buffer.data = buffers[name].detach().to(self.accelerator.device)
        try:
            yield self._full_copy
        finally:
            _free_weights(self._full_copy)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """Returns everything needed to resume as full tensors on the CPU of the main process; empty on the others.
        Frozen external weights are left out (external_weights.py).

        All processes must call it. Names: `weights/`, `ema/`, `buffers/`, `optimizer/<key>/` and `scalars/<key>/`
        followed by the name of the parameter.
        """
        main, state = self.accelerator.is_main_process, {}

        def add(key: str, full: Tensor) -> None:  # to the CPU at once, so that one full tensor exists at a time
            if main:
                state[key] = full.detach().to("cpu", copy=True).contiguous()

        for name in self.shapes:
            if name in self.unsaved:
                continue
            add(f"weights/{name}", self.full_weights(name))
            if name in self.ema:
                add(f"ema/{name}", self.gather_full(name, self.ema[name]))
            states, scalars = self.full_optimizer_state(name)
            for key, value in states.items():
                add(f"optimizer/{key}/{name}", value)
            for key, value in scalars.items():
                add(f"scalars/{key}/{name}", value)
        saved_names = set(self.task.state_dict(keep_vars=True)) - self.unsaved
        for name, buffer in self.task.named_buffers():
            if name in saved_names:
                add(f"buffers/{name}", buffer)
        return state

    @torch.no_grad()
    def load(self, saved: SavedState | None, step: int) -> None:
        """Loads a state that was saved under any strategy on any number of processes.

        Tensors are read and broadcast one by one, so that no process holds the full state.

        Args:
            saved: on the main process; None on the others.
        """
        meta = on_main(self.accelerator, lambda: {} if saved is None else saved.meta_tensors())
        self.steps = step

        def receive(key: str) -> Tensor:
            value = saved[key] if saved is not None else torch.empty_like(meta[key], device="cpu")
            value = value.to(self.accelerator.device)
            broadcast(self.accelerator, [value])
            return value

        keys: dict[tuple[str, str], list[str]] = {}  # (optimizer or scalars, name of the parameter) -> keys
        for key in meta:
            kind, _, rest = key.partition("/")
            keys.setdefault((kind, rest.partition("/")[2]), []).append(key)
        for name, shape in self.shapes.items():
            if name in self.unsaved:
                continue
            states, scalars = (
                {key.split("/")[1]: receive(key) for key in keys.get((kind, name), ())}
                for kind in ("optimizer", "scalars")
            )
            self.load_parameter(name, receive(f"weights/{name}").view(shape), states, scalars)
        for name, ema in self.ema.items():
            # A run without an EMA so far starts it from the weights.
            key = f"ema/{name}" if f"ema/{name}" in meta else f"weights/{name}"
            ema.copy_(self.shard(name, receive(key).view(self.shapes[name])))
        for name, buffer in self.task.named_buffers():
            if f"buffers/{name}" in meta:
                buffer.copy_(receive(f"buffers/{name}"))

    def export_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns weights and buffers of a state by name, those of the EMA if there is one, tied weights twice."""
        weights: dict[str, Tensor] = {}
        for kind in ("weights/", "ema/", "buffers/"):  # the EMA replaces the weights
            weights |= {key.removeprefix(kind): value for key, value in state.items() if key.startswith(kind)}
        # Copies, since safetensors refuses tensors that share memory.
        return weights | {alias: weights[name].clone() for alias, name in self.aliases.items() if name in weights}

    def batch_norm_notice(self, batch_plan: BatchPlan) -> str | None:
        """Returns a notice if batch normalization makes results depend on processes or micro-batches."""
        self.task.train()  # leaves frozen statistics in eval mode
        norms = [part for part in self.task.modules() if isinstance(part, _BatchNorm) and part.training]
        synchronized = bool(norms) and not self._main_process_buffers
        exams = batch_plan.micro_batch_size * (batch_plan.processes if synchronized else 1)
        if not norms or exams == batch_plan.batch_size:
            return None
        return (
            f"batch normalization uses statistics of {exams} exams, not of {batch_plan.batch_size}, so results depend "
            "on processes and micro-batches. With other norms or frozen statistics (model.encoder.norm) they do not"
        )

    def effective_config(self) -> dict[str, Any]:
        """Configuration of the library below, stored with the run."""
        return {}

    def scaler(self) -> Any:
        """The gradient scaler of fp16; None in other precisions."""
        return self.accelerator.scaler


def _local(tensor: Tensor) -> Tensor:
    """This process's shard, a view. Operators on DTensors give the same and cost more."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _scalars_for(
    optimizer: torch.optim.Optimizer, scalars: Mapping[str, Tensor], parameter: Tensor
) -> dict[str, Tensor]:
    """Moves scalar states to the parameter's device if the update is a fused kernel, else to the CPU, as torch does."""
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return {key: value.to(parameter.device if on_device else "cpu") for key, value in scalars.items()}


def _aliases(task: nn.Module) -> dict[str, str]:
    """Maps further names of tied parameters to their first name."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in task.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            aliases[name] = first[id(parameter)]
    return aliases


def _without_weights(task: ReportTask) -> ReportTask:
    """Copies a task in evaluation mode, with parameters on the meta device."""
    memo = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in task.parameters()
    }
    return copy.deepcopy(task, memo).eval()


def _set_parameter(task: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(task.get_submodule(module), attribute, parameter)


def _free_weights(task: nn.Module) -> None:
    for name, parameter in list(task.named_parameters(remove_duplicate=False)):
        empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        _set_parameter(task, name, empty)

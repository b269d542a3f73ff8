"""DeepSpeed's ZeRO: optimizer state (stage 1), gradients (2) and weights (3) are partitioned over the processes."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import pad

from framework.data.loading import BatchPlan
from framework.distributed.deepspeed_config import deepspeed_config
from framework.distributed.resolve import strategy_of
from framework.distributed.strategy import Strategy
from framework.exam import Batch
from framework.recipe import Recipe
from framework.task import ReportTask, TaskOutput


class Zero(Strategy):
    """DeepSpeed, initialized here and not through Accelerate, which fills `auto` values itself.

    Weights are fp32 and bf16 is autocast, so that every strategy computes the same.

    The optimizer works on flat tensors, which hold this process's parts of many parameters. Those of one parameter are
    read and written by the functions safe_get_* and safe_set_* of deepspeed.utils.

    Source:
        Rajbhandari et al. 2020, arXiv 1910.02054.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: Recipe,
        task: ReportTask,
        build_optimizer: Callable[[nn.Module], Any],
        batch_plan: BatchPlan,
    ) -> None:
        self.config = deepspeed_config(recipe, batch_plan)
        self.stage = int(strategy_of(recipe).removeprefix("zero"))
        super().__init__(accelerator, recipe, task, build_optimizer)

    def _wrap(self, build_optimizer: Callable[[nn.Module], Any]) -> None:
        if self.accelerator.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # also on a machine with a GPU that the run does not use
        # DeepSpeed calls functions of torch by names that torch is about to remove.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
        import deepspeed

        # On a CPU it would compile communication through shared memory at the start of the run, which needs a compiler,
        # and whose memory two runs can come to share.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.optimizer = build_optimizer(self.task)
        self._groups = {
            id(parameter): number
            for number, group in enumerate(self.optimizer.param_groups)
            for parameter in group["params"]
        }
        # The global batch size follows from the rest; a probe runs one process's share of several.
        config = {key: value for key, value in self.config.items() if key != "train_batch_size"}
        os.environ.setdefault("LOCAL_RANK", "0")  # needed by stage 3 without a launcher, also in later steps
        for tensor in [*self.task.parameters(), *self.task.buffers()]:
            # DeepSpeed sends plain bytes, so channels_last weights must be laid out again. `contiguous` does not change
            # those of a 1 x 1 convolution.
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        self.engine, self._zero_optimizer, *_ = deepspeed.initialize(
            model=self.task, optimizer=self.optimizer, config=config, dist_init_required=False
        )
        # DeepSpeed creates process groups of its own, which have torch's default time-out.
        for group in dist.distributed_c10d._world.pg_map:
            dist.distributed_c10d._set_pg_timeout(timedelta(minutes=self.recipe.distributed.timeout), group)

    def __call__(self, batch: Batch) -> TaskOutput:
        return self.engine(batch)

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        return super().accumulating(last=last)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> Tensor:
        self.engine.step()  # skips non-finite gradients
        norm = self.engine.get_global_grad_norm() if self.engine.was_step_applied() else math.inf
        return torch.as_tensor(norm, dtype=torch.float64, device=self.accelerator.device)

    def effective_config(self) -> dict[str, Any]:
        return {"deepspeed": self.config}

    # A shard is an equal part of a flattened parameter, as stage 3 cuts it; that of the last process is padded.

    def shard(self, name: str, full: Tensor) -> Tensor:
        length = math.ceil(full.numel() / self.accelerator.num_processes)
        start = self.accelerator.process_index * length
        values = full.reshape(-1)[start : start + length]
        return values if len(values) == length else pad(values, (0, length - len(values)))

    @torch.no_grad()
    def gather_full(self, name: str, local: Tensor) -> Tensor:
        shape, processes = self.shapes[name], self.accelerator.num_processes
        values = local.to(self.accelerator.device)
        if processes > 1:
            full = values.new_empty(values.numel() * processes)
            dist.all_gather_into_tensor(full, values)
            values = full
        return values[: shape.numel()].view(shape)

    def local_weights(self) -> Iterator[tuple[str, Tensor]]:
        import deepspeed

        for name, parameter in self.task.named_parameters():
            if parameter.requires_grad:
                if self.stage == 3:
                    values = deepspeed.utils.safe_get_local_fp32_param(parameter)
                else:
                    values = self.shard(name, parameter.detach())  # fp32, equal to the optimizer's weights
                # Offloaded weights are copied to the GPU; their EMA stays on the host.
                yield name, values if self.recipe.distributed.offload == "none" else values.cpu()

    def full_weights(self, name: str) -> Tensor:
        import deepspeed

        parameter = self.task.get_parameter(name)
        if self.stage < 3:
            return parameter.detach()
        if parameter.requires_grad:
            full: Tensor = deepspeed.utils.safe_get_full_fp32_param(parameter)
            return full
        with deepspeed.zero.GatheredParameters(parameter):
            return parameter.detach().clone()

    def full_optimizer_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        import deepspeed

        parameter = self.task.get_parameter(name)
        if not parameter.requires_grad or not self.optimizer.state:
            return {}, {}
        self._link_states(parameter)
        flat = self._flats(parameter)[0]  # every step updates all, so their states have the same keys and scalars
        kept = self.optimizer.state[flat]
        tensors = {key: value for key, value in kept.items() if isinstance(value, Tensor)}
        keys = [key for key, value in tensors.items() if value.shape == flat.shape and key != "step"]
        states = {key: deepspeed.utils.safe_get_full_optimizer_state(parameter, key) for key in keys}
        return states, {key: value for key, value in tensors.items() if key not in states}

    @torch.no_grad()
    def load_parameter(
        self, name: str, full: Tensor, states: Mapping[str, Tensor], scalars: Mapping[str, Tensor]
    ) -> None:
        import deepspeed

        parameter = self.task.get_parameter(name)
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):  # does nothing below stage 3
            parameter.copy_(full)
        if not parameter.requires_grad:
            return
        if states or scalars:
            for flat in self._flats(parameter):  # DeepSpeed has no function that creates states before the first step
                kept = self.optimizer.state[flat]
                kept.update({key: torch.zeros_like(flat) for key in states if key not in kept})
                for key, value in scalars.items():  # copies: Adam counts its steps in place
                    kept[key] = value.to(kept[key].device if key in kept else "cpu", copy=True)
            self._link_states(parameter)
        # The functions below set the optimizer's weights, which forward does not use. Those for full tensors fail under
        # stage 3 if the size of a parameter is not a multiple of the number of processes.
        if self.stage == 3:
            deepspeed.utils.safe_set_local_fp32_param(parameter, self.shard(name, full))
            for key, value in states.items():
                deepspeed.utils.safe_set_local_optimizer_state(parameter, self.shard(name, value), key)
        else:
            deepspeed.utils.safe_set_full_fp32_param(parameter, full)
            for key, value in states.items():
                deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)

    def _flats(self, parameter: nn.Parameter) -> list[Tensor]:
        """The flat tensors that hold a parameter, under stage 3 among others."""
        if self.stage == 3:
            flats: list[Tensor] = self._zero_optimizer.fp32_partitioned_groups_flat
            return flats
        return [self.optimizer.param_groups[self._groups[id(parameter)]]["params"][0]]

    def _link_states(self, parameter: nn.Parameter) -> None:
        """Lets safe_get_full_optimizer_state find a parameter's states. In its first step DeepSpeed links those of the
        first parameter group only.
        """
        import deepspeed

        if self.stage < 3:
            flat = self._flats(parameter)[0]
            deepspeed.utils.lazy_init_hp_params_optimizer_state([parameter], flat, self.optimizer.state)

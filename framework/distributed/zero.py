"""DeepSpeed's ZeRO: optimizer state (1), gradients (2) and weights (3) are cut over the processes."""

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

from framework.data.loading import BatchPlan
from framework.distributed.deepspeed_json import deepspeed_config
from framework.distributed.resolve import strategy_of
from framework.distributed.strategy import Shard, Strategy
from framework.exam import Batch
from framework.recipe import Recipe
from framework.task import ReportTask, TaskOutput


class Zero(Strategy):
    """DeepSpeed, set up here and not through Accelerate, which would guess at what the recipe says.

    Weights stay in fp32 and the arithmetic of bf16 is autocast, so that every strategy computes the same.

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
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # also where there is a GPU that the run is not to use
        # DeepSpeed calls names of torch's that torch is about to rename.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
        import deepspeed

        # For a CPU it would compile messages through shared memory while the run starts, which asks for a compiler, and
        # whose memory two runs can come to share.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.optimizer = build_optimizer(self.task)
        # The global batch follows from the rest; a probe takes the share of one process of several.
        config = {key: value for key, value in self.config.items() if key != "train_batch_size"}
        os.environ.setdefault("LOCAL_RANK", "0")  # without a launcher: zero3 asks for it, in its second step as well
        for tensor in [*self.task.parameters(), *self.task.buffers()]:
            # It sends them as plain bytes, which channels_last weights are not; and `contiguous` would leave those of
            # a 1 x 1 convolution as they are.
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        self.engine, self.cut, *_ = deepspeed.initialize(
            model=self.task, optimizer=self.optimizer, config=config, dist_init_required=False
        )
        # DeepSpeed talks through groups of its own, which would wait for as long as torch does by default.
        for group in dist.distributed_c10d._world.pg_map:
            dist.distributed_c10d._set_pg_timeout(timedelta(minutes=self.recipe.distributed.timeout), group)
        if self.stage < 3:
            self.groups = {id(weight): row for row, group in enumerate(self.cut.bit16_groups) for weight in group}

    def __call__(self, batch: Batch) -> TaskOutput:
        return self.engine(batch)

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        return super().accumulating(last=last)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> Tensor:
        self.engine.step()  # skips what is not finite, and gives an infinite norm
        norm = self.engine.get_global_grad_norm() if self.engine.was_step_applied() else math.inf
        return torch.as_tensor(norm, dtype=torch.float64, device=self.accelerator.device)

    def effective_config(self) -> dict[str, Any]:
        return {"deepspeed": self.config}

    def local_shards(self) -> Iterator[tuple[str, Shard]]:
        for name, parameter in self.task.named_parameters():
            start, weights, flat, begin = self._place(parameter)
            kept = {} if flat is None else self.optimizer.state.get(flat, {})
            count = weights.numel()
            tensors = {key: value for key, value in kept.items() if isinstance(value, Tensor)}
            states = {key: value[begin : begin + count] for key, value in tensors.items() if value.shape == flat.shape}
            scalars = {key: value for key, value in tensors.items() if key not in states}
            yield name, Shard(start, weights, states, scalars)

    @torch.no_grad()
    def load_shard(self, name: str, whole: Tensor, states: Mapping[str, Tensor], scalars: Mapping[str, Tensor]) -> None:
        parameter: Any = self.task.get_parameter(name)
        start, weights, flat, begin = self._place(parameter)
        count, values = weights.numel(), whole.reshape(-1)
        weights.copy_(values[start : start + count])
        if self.stage == 3:
            # The copy that forward gathers; its end may be padding.
            parameter.ds_tensor.view(-1)[:count].copy_(values[start : start + count])
        else:
            parameter.copy_(whole)
        if flat is None or not (states or scalars):
            return
        kept = self.optimizer.state[flat]
        for key, value in states.items():
            if key not in kept:
                kept[key] = torch.zeros_like(flat)
            kept[key][begin : begin + count].copy_(value.reshape(-1)[start : start + count])
        kept.update({key: value.to(kept[key].device if key in kept else "cpu") for key, value in scalars.items()})

    def _loaded(self) -> None:
        if self.stage == 3 and self.cut.persistent_parameters:
            # Small weights stay gathered; they are gathered anew.
            some = self.cut.persistent_parameters
            some[0].partition(some)
            some[0].all_gather(some)

    def _place(self, parameter: Any) -> tuple[int, Tensor, Any, int]:
        """Of this process's piece of a parameter: its start, its fp32 weights, the flat tensor that the optimizer works
        on (None of a frozen one), and where in it the piece begins.
        """
        if self.stage == 3:
            each = parameter.ds_tensor.numel()
            start = min(self.accelerator.process_index * each, parameter.ds_numel)
            count = min(each, parameter.ds_numel - start)
            if not parameter.requires_grad:
                return start, parameter.ds_tensor.detach().view(-1)[:count], None, 0
            group, begin, _ = self.cut.grad_position[self.cut.get_param_id(parameter)]
            flat = self.cut.fp32_partitioned_groups_flat[group]
            return start, flat.detach()[begin : begin + count], flat, begin
        if id(parameter) not in self.groups:
            # Frozen, and so whole on each; the main process speaks for all.
            mine = parameter.detach().reshape(-1)
            return 0, mine if self.accelerator.is_main_process else mine[:0], None, 0
        flat = self.cut.single_partition_of_fp32_groups[self.groups[id(parameter)]]
        found = parameter._hp_mapping
        if found is None:
            return 0, flat.detach()[:0], flat, 0
        begin, count = found.hp_fragment_address.start, found.hp_fragment_address.numel
        return found.lp_fragment_address.start, flat.detach()[begin : begin + count], flat, begin

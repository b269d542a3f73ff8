"""What DeepSpeed does with a small network, on one of two processes; see wrappers_worker.py."""

from __future__ import annotations

import math
import os
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import utils
from torch import Tensor, nn

CLIP, TIMEOUT = 0.5, timedelta(seconds=77)  # the time-out of wrappers_worker.py
RANK = int(os.environ["RANK"])
OPS = deepspeed.ops.__compatible_ops__
KNOWS_SHARED_MEMORY = "deepspeed_shm_comm" in OPS
OPS["deepspeed_shm_comm"] = False  # as zero.py does


class Net(nn.Module):
    """35 + 5 weights in the first group, 5 + 1 in the second: neither divides by two processes and an alignment."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.frozen = nn.Linear(7, 5), nn.Linear(5, 1), nn.Linear(5, 5)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.frozen(self.first(x))).sum()


class Unknown(torch.optim.SGD):
    """An optimizer that DeepSpeed does not know by name."""


def config(stage: int, **more: Any) -> dict[str, Any]:
    """The keys that framework/distributed/deepspeed_config.py sets."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": False, "dtype": "bfloat16"},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 10},
        **more,
    }


def start(stage: int, make: Any, **more: Any) -> tuple[Any, Any, Net, torch.optim.Optimizer]:
    net = Net()
    optimizer = make([{"params": list(net.first.parameters())}, {"params": list(net.last.parameters())}])
    engine, cut, *_ = deepspeed.initialize(
        model=net, optimizer=optimizer, config=config(stage, **more), dist_init_required=False
    )
    return engine, cut, net, optimizer


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=1.0)


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.1)


def learns(net: Net) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]


def batches(rank: int, step: int) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randn(3, 7, generator=drawn) for _ in range(2)]


def step(engine: Any, number: int, factor: float = 1.0) -> None:
    """Two micro-batches that are accumulated, as framework/distributed/zero.py takes them."""
    for last, batch in enumerate(batches(RANK, number)):
        loss = engine(batch) * factor
        engine.set_gradient_accumulation_boundary(is_boundary=bool(last))
        engine.backward(loss, scale_wrt_gas=False)
    engine.step()


def by_hand(net: Net, number: int, clip: float) -> float:
    """The same step on full weights: sums over micro-batches, means over processes. Returns the gradient's norm."""
    net.zero_grad()
    for rank in range(2):
        for batch in batches(rank, number):
            (net(batch) / 2).backward()
    norm = float(nn.utils.clip_grad_norm_([p for _, p in learns(net)], clip))
    with torch.no_grad():
        for _, parameter in learns(net):
            parameter -= parameter.grad
    return norm


def full(parameter: Any) -> Tensor:
    """A parameter's values on every process."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach().reshape(-1).clone()
    parts = [torch.empty_like(parameter.ds_tensor) for _ in range(2)]
    dist.all_gather(parts, parameter.ds_tensor.detach())
    return torch.cat(parts)[: parameter.ds_numel]


def most(net: Net, other: Net) -> float:
    """The largest difference of two networks' weights."""
    pairs = zip(net.parameters(), other.parameters())
    return max(float((full(mine) - yours.detach().reshape(-1)).abs().max()) for mine, yours in pairs)


def flats(stage: int, cut: Any, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that the optimizer works on, as zero.py finds them."""
    if stage == 3:
        return list(cut.fp32_partitioned_groups_flat)
    return [group["params"][0] for group in optimizer.param_groups]


def link(stage: int, cut: Any, net: Net, optimizer: torch.optim.Optimizer) -> None:
    """As zero.py links optimizer states to parameters."""
    if stage < 3:
        first, last = flats(stage, cut, optimizer)
        utils.lazy_init_hp_params_optimizer_state(list(net.first.parameters()), first, optimizer.state)
        utils.lazy_init_hp_params_optimizer_state(list(net.last.parameters()), last, optimizer.state)


def raises(function: Any, *words: Any) -> bool:
    try:
        function(*words)
    except Exception:
        return True
    return False


def states(stage: int) -> dict[str, Any]:
    """Reading and writing weights and optimizer states by deepspeed.utils.safe_get_* and safe_set_*."""
    engine, cut, net, optimizer = start(stage, adamw)
    before = dict(Net().named_parameters())
    found: dict[str, Any] = {"states_at_start": len(optimizer.state), "moved_at_start": most(net, Net())}
    pairs = [(parameter, before[name].detach()) for name, parameter in learns(net)]
    found["weights"] = all(torch.equal(utils.safe_get_full_fp32_param(mine), theirs) for mine, theirs in pairs)
    found["flats"] = [flat.dtype == torch.float32 for flat in flats(stage, cut, optimizer)]
    if stage == 3:
        locals_ = [utils.safe_get_local_fp32_param(mine).clone() for mine, _ in pairs]
        parts = [math.ceil(theirs.numel() / 2) for _, theirs in pairs]
        found["local"] = all(
            len(local) == part and torch.equal(local[: len(own)], own)
            for local, part, own in (
                (local, part, theirs.reshape(-1)[RANK * part : (RANK + 1) * part])
                for local, part, (_, theirs) in zip(locals_, parts, pairs)
            )
        )
        with deepspeed.zero.GatheredParameters(net.frozen.weight):
            found["frozen"] = torch.equal(net.frozen.weight.detach(), before["frozen.weight"].detach())
        found["frozen_has_none"] = utils.safe_get_full_fp32_param(net.frozen.weight) is None
    else:
        found["replicated"] = all(torch.equal(mine.detach(), theirs) for mine, theirs in pairs)
    step(engine, 1)
    found["states_after"] = [flat in optimizer.state for flat in flats(stage, cut, optimizer)]
    found["keys_after"] = sorted(next(iter(optimizer.state.values())))
    last = net.last.weight
    found["second_group_is_not_linked"] = raises(utils.safe_get_full_optimizer_state, last, "exp_avg")
    link(stage, cut, net, optimizer)
    found["shape"] = list(utils.safe_get_full_optimizer_state(last, "exp_avg").shape)

    # As zero.py loads: into an optimizer without states.
    engine, cut, net, optimizer = start(stage, adamw)
    for flat in flats(stage, cut, optimizer):
        optimizer.state[flat] = {"step": torch.tensor(4.0), "exp_avg": torch.zeros_like(flat)}
        optimizer.state[flat]["exp_avg_sq"] = torch.zeros_like(flat)
    link(stage, cut, net, optimizer)
    new, right = Net(), True
    for (_, parameter), (_, value) in zip(learns(net), learns(new)):
        with torch.no_grad():
            value += 1.5
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
                parameter.copy_(value)
        full = value.detach()
        if stage == 3:
            part = math.ceil(full.numel() / 2)
            own = full.reshape(-1)[RANK * part : (RANK + 1) * part]
            own = nn.functional.pad(own, (0, part - len(own)))
            if full.numel() % 2:  # on the last process, whose part is padded
                found["full_does_not_divide"] = raises(utils.safe_set_full_fp32_param, parameter, full)
            utils.safe_set_local_fp32_param(parameter, own)
            utils.safe_set_local_optimizer_state(parameter, own, "exp_avg")
        else:
            utils.safe_set_full_fp32_param(parameter, full)
            utils.safe_set_full_optimizer_state(parameter, full, "exp_avg")
        right &= torch.equal(utils.safe_get_full_fp32_param(parameter), full)
        right &= torch.equal(utils.safe_get_full_optimizer_state(parameter, "exp_avg"), full)
    found["set"] = right
    x = batches(0, 9)[0]
    found["forward_after_set"] = abs(float(engine(x).detach()) - float(new(x).detach()))
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
    step(engine, 2)
    found["moved_by_a_rate_of_zero"] = most(net, new)
    found["steps"] = sorted({float(state["step"]) for state in optimizer.state.values()})
    return found


def steps(stage: int) -> dict[str, Any]:
    """Gradients, clipping, and a gradient that is not finite on one process."""
    found: dict[str, Any] = {}
    for name, clip in (("plain", math.inf), ("clipped", CLIP)):
        engine, _, net, _ = start(stage, sgd, gradient_clipping=0.0 if clip == math.inf else clip)
        other = Net()
        norm = by_hand(other, 1, clip)
        step(engine, 1)
        found[name] = most(net, other)
        found[f"{name}_norm"] = [float(engine.get_global_grad_norm()), norm]
    found["applied"] = engine.was_step_applied()
    step(engine, 2, factor=math.nan if RANK else 1.0)
    found["applied_with_nan"] = engine.was_step_applied()
    found["moved_by_nan"] = most(net, other)
    by_hand(other, 3, CLIP)
    step(engine, 3)
    found["applied_after_nan"], found["after_nan"] = engine.was_step_applied(), most(net, other)
    return found


def rest() -> dict[str, Any]:
    """An optimizer of one's own, autocast, and groups of processes."""
    found: dict[str, Any] = {"knows_shared_memory": KNOWS_SHARED_MEMORY}
    engine, *_ = start(2, lambda groups: Unknown(groups, lr=1.0))
    step(engine, 1)
    found["unknown_optimizer"] = engine.was_step_applied()
    try:
        start(2, lambda groups: Unknown(groups, lr=1.0), zero_allow_untested_optimizer=False)
        found["unknown_refused"] = False
    except AssertionError:
        found["unknown_refused"] = True
    seen: list[str] = []
    engine, cut, net, _ = start(2, sgd, torch_autocast={"enabled": True, "dtype": "bfloat16"})
    net.first.register_forward_hook(lambda part, given, out: seen.append(str(out.dtype)))
    step(engine, 1)
    found["autocast"] = [seen[0], str(net.first.weight.dtype), str(cut.single_partition_of_fp32_groups[0].dtype)]
    groups = list(dist.distributed_c10d._world.pg_map)

    def timeouts() -> list[float]:
        backends = [group._get_backend(torch.device("cpu")) for group in groups]
        return sorted({backend.options._timeout.total_seconds() for backend in backends})

    found["groups"], found["timeouts"] = len(groups), timeouts()
    for group in groups:
        dist.distributed_c10d._set_pg_timeout(2 * TIMEOUT, group)
    found["timeouts_set"] = timeouts()
    return found


def facts() -> dict[str, Any]:
    return {f"zero{stage}": {"states": states(stage), "steps": steps(stage)} for stage in (1, 2, 3)} | {"rest": rest()}

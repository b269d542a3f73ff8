"""One of two processes under torchrun: prints what DeepSpeed does with a small network, a line of JSON a process."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

CLIP, TIMEOUT = 0.5, timedelta(seconds=77)
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
    """The same step on whole weights: sums over micro-batches, means over processes. Returns the gradient's norm."""
    net.zero_grad()
    for rank in range(2):
        for batch in batches(rank, number):
            (net(batch) / 2).backward()
    norm = float(nn.utils.clip_grad_norm_([p for _, p in learns(net)], clip))
    with torch.no_grad():
        for _, parameter in learns(net):
            parameter -= parameter.grad
    return norm


def whole(parameter: Any) -> Tensor:
    """A parameter's values on every process."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach().reshape(-1).clone()
    parts = [torch.empty_like(parameter.ds_tensor) for _ in range(2)]
    dist.all_gather(parts, parameter.ds_tensor.detach())
    return torch.cat(parts)[: parameter.ds_numel]


def most(net: Net, other: Net) -> float:
    """The largest difference of two networks' weights."""
    pairs = zip(net.parameters(), other.parameters())
    return max(float((whole(mine) - yours.detach().reshape(-1)).abs().max()) for mine, yours in pairs)


def place(stage: int, cut: Any, parameter: Any) -> tuple[int, int, Tensor, int]:
    """Start and count of this process's piece, the flat tensor that holds it, and where; as zero.py reads them."""
    if stage == 3:
        each = parameter.ds_tensor.numel()
        group, begin, _ = cut.grad_position[cut.get_param_id(parameter)]
        first = min(RANK * each, parameter.ds_numel)
        return first, min(each, parameter.ds_numel - first), cut.fp32_partitioned_groups_flat[group], begin
    groups = {id(weight): row for row, group in enumerate(cut.bit16_groups) for weight in group}
    flat, found = cut.single_partition_of_fp32_groups[groups[id(parameter)]], parameter._hp_mapping
    if found is None:
        return 0, 0, flat, 0
    return (
        found.lp_fragment_address.start,
        found.hp_fragment_address.numel,
        flat,
        found.hp_fragment_address.start,
    )


def pieces(stage: int) -> dict[str, Any]:
    """Where each value lies, and that the optimizer given is the one that works on it."""
    engine, cut, net, optimizer = start(stage, adamw)
    before = Net()
    told: dict[str, Any] = {"state_at_start": len(optimizer.state), "moved_at_start": most(net, before)}
    held, right, kept = {}, True, True
    for (name, parameter), original in zip(learns(net), [p for _, p in learns(before)]):
        first, count, flat, begin = place(stage, cut, parameter)
        held[name] = [first, count]
        right &= torch.equal(flat.detach()[begin : begin + count], original.detach().reshape(-1)[first : first + count])
        right &= flat.dtype == torch.float32
        if stage == 3:
            right &= torch.equal(whole(parameter), original.detach().reshape(-1))
    step(engine, 1)
    for _, parameter in learns(net):
        _, _, flat, _ = place(stage, cut, parameter)
        state = optimizer.state[flat]
        kept &= state["exp_avg"].shape == flat.shape and state["step"].numel() == 1
    told |= {"held": held, "flat_holds_the_values": right, "state_is_of_the_flat": kept}
    told["state_after"] = len(optimizer.state)

    # As Zero._put does: the piece, and what forward sees of it.
    new = copy.deepcopy(before)
    with torch.no_grad():
        for (_, parameter), value in zip(learns(net), [p for _, p in learns(new)]):
            value += 1.5
            first, count, flat, begin = place(stage, cut, parameter)
            flat[begin : begin + count].copy_(value.reshape(-1)[first : first + count])
            if stage == 3:
                parameter.ds_tensor.view(-1)[:count].copy_(value.reshape(-1)[first : first + count])
            else:
                parameter.copy_(value)
    if stage == 3:
        some = cut.persistent_parameters
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        told["persistent"] = sorted(names[id(parameter)] for parameter in some)
        told["others_are_empty"] = net.first.weight.numel()
        some[0].partition(some)
        some[0].all_gather(some)
        told["frozen"] = [net.frozen.weight.ds_numel, net.frozen.weight.ds_tensor.numel()]
        told["frozen_has_no_place"] = cut.get_param_id(net.frozen.weight) not in cut.grad_position
    x = batches(0, 9)[0]
    told["forward_after_put"] = abs(float(engine(x).detach()) - float(new(x).detach()))
    if stage < 3:
        told["frozen_has_no_place"] = not any(
            net.frozen.weight is weight for group in cut.bit16_groups for weight in group
        )
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.0, 0.0
    step(engine, 2)
    told["moved_by_a_rate_of_zero"] = most(net, new)
    return told


def steps(stage: int) -> dict[str, Any]:
    """Gradients, clipping, and a gradient that is not finite on one process."""
    told: dict[str, Any] = {}
    for name, clip in (("plain", math.inf), ("clipped", CLIP)):
        engine, _, net, _ = start(stage, sgd, gradient_clipping=0.0 if clip == math.inf else clip)
        other = Net()
        norm = by_hand(other, 1, clip)
        step(engine, 1)
        told[name] = most(net, other)
        told[f"{name}_norm"] = [float(engine.get_global_grad_norm()), norm]
    told["applied"] = engine.was_step_applied()
    step(engine, 2, factor=math.nan if RANK else 1.0)
    told["applied_with_nan"] = engine.was_step_applied()
    told["moved_by_nan"] = most(net, other)
    by_hand(other, 3, CLIP)
    step(engine, 3)
    told["applied_after_nan"], told["after_nan"] = engine.was_step_applied(), most(net, other)
    return told


def rest() -> dict[str, Any]:
    """An optimizer of one's own, autocast, and groups of processes."""
    told: dict[str, Any] = {"knows_shared_memory": KNOWS_SHARED_MEMORY}
    engine, *_ = start(2, lambda groups: Unknown(groups, lr=1.0))
    step(engine, 1)
    told["unknown_optimizer"] = engine.was_step_applied()
    try:
        start(2, lambda groups: Unknown(groups, lr=1.0), zero_allow_untested_optimizer=False)
        told["unknown_refused"] = False
    except AssertionError:
        told["unknown_refused"] = True
    seen: list[str] = []
    engine, cut, net, _ = start(2, sgd, torch_autocast={"enabled": True, "dtype": "bfloat16"})
    net.first.register_forward_hook(lambda part, given, out: seen.append(str(out.dtype)))
    step(engine, 1)
    told["autocast"] = [seen[0], str(net.first.weight.dtype), str(cut.single_partition_of_fp32_groups[0].dtype)]
    groups = list(dist.distributed_c10d._world.pg_map)

    def timeouts() -> list[float]:
        backends = [group._get_backend(torch.device("cpu")) for group in groups]
        return sorted({backend.options._timeout.total_seconds() for backend in backends})

    told["groups"], told["timeouts"] = len(groups), timeouts()
    for group in groups:
        dist.distributed_c10d._set_pg_timeout(2 * TIMEOUT, group)
    told["timeouts_set"] = timeouts()
    return told


if __name__ == "__main__":
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    facts = {f"zero{stage}": {"pieces": pieces(stage), "steps": steps(stage)} for stage in (1, 2, 3)}
    facts["rest"] = rest()
    everything: list[Any] = [None, None]
    dist.all_gather_object(everything, facts)
    if RANK == 0:
        print("facts", json.dumps(everything), flush=True)
    dist.barrier()
    os._exit(0)  # DeepSpeed's own farewell may wait for a peer that has gone

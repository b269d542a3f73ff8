"""What fully_shard does with small networks, on one of two processes; see wrappers_worker.py."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

CLIP = 0.5
RANK = int(os.environ["RANK"])


class Net(nn.Module):
    """Parameters of 5, 3 and 1 rows: uneven, and fewer than processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(7, 5), nn.Linear(5, 3)])
        self.last, self.frozen = nn.Linear(3, 1), nn.Linear(1, 1)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.frozen(self.last(x)).sum()


def sharded(net: Net) -> Net:
    mesh = init_device_mesh("cpu", (2,))
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def batches(rank: int, step: int) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randn(3, 7, generator=drawn) for _ in range(2)]


def by_hand(net: Net, number: int, clip: float) -> float:
    """A step on full weights: sums over micro-batches, means over processes. Returns the gradient's norm."""
    net.zero_grad()
    for rank in range(2):
        for batch in batches(rank, number):
            (net(batch) / 2).backward()
    norm = float(nn.utils.clip_grad_norm_(net.parameters(), clip))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    return norm


def most(net: Net, other: Net) -> float:
    """The largest difference of two networks' weights."""
    pairs = zip(net.parameters(), other.parameters())
    return max(float((mine.full_tensor() - yours).abs().max()) for mine, yours in pairs)


def sharding() -> dict[str, Any]:
    net, names = Net(), [name for name, _ in Net().named_parameters()]
    net = sharded(net)
    found: dict[str, Any] = {"same_names": names == [name for name, _ in net.named_parameters()], "rows": {}}
    before = dict(Net().named_parameters())
    right, views = True, True
    for name, parameter in net.named_parameters():
        local = parameter.detach().to_local()
        rows = before[name].shape[0]
        first = min(RANK * math.ceil(rows / 2), rows)  # as fsdp.py has it
        found["rows"][name] = [rows, first, local.shape[0]]
        right &= torch.equal(local, before[name].detach()[first : first + local.shape[0]])
        local.view(-1).fill_(2.5)
        views &= bool((parameter.full_tensor() == 2.5).all())
    found |= {"rows_hold_the_values": right, "local_is_a_view": views}
    other = Net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(2.5)
    x = batches(0, 9)[0]
    found["forward_sees_it"] = abs(float(net(x).detach()) - float(other(x).detach()))
    turned = nn.Linear(4, 6)
    turned.weight.data = torch.randn(4, 6).t()
    try:
        fully_shard(turned, mesh=init_device_mesh("cpu", (2,)))
        found["other_layouts_refused"] = False
    except (NotImplementedError, ValueError):
        found["other_layouts_refused"] = True
    waits = {group._get_backend(torch.device("cpu")).options._timeout for group in dist.distributed_c10d._world.pg_map}
    found["timeouts"] = sorted(wait.total_seconds() for wait in waits)
    return found


def steps() -> dict[str, Any]:
    found: dict[str, Any] = {}

    def step(number: int, clip: float, factor: float = 1.0) -> Any:
        for batch in batches(RANK, number):
            (net(batch) * factor).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
        full_norm = float(norm.full_tensor())
        if math.isfinite(full_norm):
            optimizer.step()
        optimizer.zero_grad()
        return norm, full_norm

    for name, clip in (("plain", math.inf), ("clipped", CLIP)):
        net, other = sharded(Net()), Net()
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        expected = by_hand(other, 1, clip)
        norm, full_norm = step(1, clip)
        found[f"{name}_norm"], found[name] = [full_norm, expected], most(net, other)
        found["norm_is_sharded"] = isinstance(norm, DTensor)
    _, full_norm = step(2, CLIP, factor=math.nan if RANK else 1.0)
    found["norm_with_nan"], found["moved_by_nan"] = str(full_norm), most(net, other)

    net = sharded(Net())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    step(1, CLIP)
    found["states"] = all(
        isinstance(optimizer.state[p][key], DTensor) and optimizer.state[p][key].to_local().shape == p.to_local().shape
        for p in net.parameters()
        if p.requires_grad
        for key in ("exp_avg", "exp_avg_sq")
    )
    counts = [optimizer.state[p]["step"] for p in net.parameters() if p.requires_grad]
    found["step_is_plain"] = all(isinstance(count, Tensor) and not isinstance(count, DTensor) for count in counts)
    found["like_is_sharded"] = isinstance(torch.zeros_like(net.last.weight), DTensor)
    return found


def facts() -> dict[str, Any]:
    return {**sharding(), **steps()}

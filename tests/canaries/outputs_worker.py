"""What each wrapper returns of a NamedTuple of tensors and a dict, on one of two processes; see wrappers_worker.py."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

RANK = int(os.environ["RANK"])


class Output(NamedTuple):
    """As framework.task.TaskOutput: some fields carry a gradient, others do not."""

    loss_sums: Tensor
    counts: Tensor
    metrics: dict[str, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(7, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, *, metrics: bool = True) -> Output:
        hidden = self.first(x)
        logits = self.last(hidden)
        counts = torch.tensor([3, 4])
        found = {"hits": (logits.detach() > 0).sum(), "norm": hidden.float().norm().detach()} if metrics else {}
        return Output(logits.sum(0), counts, found)


def batch(rank: int) -> Tensor:
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(rank))


def loss_of(output: Output) -> Tensor:
    return (output.loss_sums.float() / output.counts).square().sum()


def by_hand() -> list[Tensor]:
    """The mean over processes of their gradients."""
    net = Net()
    for rank in range(2):
        (loss_of(net(batch(rank))) / 2).backward()
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def described(output: Any, noise: float = 1e-5) -> dict[str, Any]:
    fields = {
        name: [str(value.dtype), value.requires_grad]
        for name, value in {**output._asdict(), **output.metrics}.items()
        if isinstance(value, Tensor)
    }
    expected = Net()(batch(RANK))
    same = [torch.allclose(output.loss_sums.float(), expected.loss_sums, atol=noise)]
    same += [torch.equal(output.counts, expected.counts)]
    same += [
        torch.allclose(output.metrics[name].float(), value.float(), atol=noise)
        for name, value in expected.metrics.items()
    ]
    return {"type": type(output).__name__, "fields": fields, "same_values": all(same)}


def worst(gradients: list[Tensor]) -> float:
    pairs = zip(gradients, by_hand(), strict=True)
    return max(float((mine - theirs).abs().max()) for mine, theirs in pairs)


def ddp(accelerator: Accelerator, noise: float = 1e-5) -> dict[str, Any]:
    net = accelerator.prepare(Net())
    output = net(batch(RANK))
    accelerator.backward(loss_of(output))
    found = described(output, noise) | {"wrapper": type(net).__name__}
    return found | {"gradients": worst([p.grad for p in net.parameters()]), "empty": net(batch(0), metrics=False)[2]}


def fsdp() -> dict[str, Any]:
    net = Net()
    mesh = init_device_mesh("cpu", (2,))
    for block in (net.first, net.last):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    output = net(batch(RANK))
    loss_of(output).backward()
    grads = [p.grad.full_tensor() for p in net.parameters() if isinstance(p.grad, DTensor)]
    return described(output) | {"gradients": worst(grads), "empty": net(batch(0), metrics=False)[2]}


def zero(stage: int) -> dict[str, Any]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as zero.py does
    net = Net()
    engine, *_ = deepspeed.initialize(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.0),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {"enabled": False, "dtype": "bfloat16"},
            "zero_optimization": {"stage": stage},
        },
        dist_init_required=False,
    )
    output = engine(batch(RANK))
    engine.backward(loss_of(output))
    found = described(output) | {"gradients": worst([safe_get_full_grad(p) for p in net.parameters()])}
    engine.step()
    return found | {"empty": engine(batch(0), metrics=False)[2]}


def facts() -> dict[str, Any]:
    accelerator = Accelerator(cpu=True)
    found = {"ddp": ddp(accelerator), "fsdp": fsdp()}
    accelerator.native_amp, accelerator.state._mixed_precision = True, "bf16"
    return found | {"ddp_bf16": ddp(accelerator, noise=0.05)} | {f"zero{stage}": zero(stage) for stage in (1, 2, 3)}

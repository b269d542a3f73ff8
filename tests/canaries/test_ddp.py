"""What framework/distributed/ddp.py leans on in torch's DistributedDataParallel."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@pytest.fixture(scope="module")
def group_of_one() -> Iterator[None]:
    made = not dist.is_initialized()
    if made:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if made:
        dist.destroy_process_group()


@pytest.mark.parametrize(("forward_inside", "exchanges"), [(True, 0), (False, 1)])
def test_forward_decides_whether_backward_exchanges_gradients(
    group_of_one: None, forward_inside: bool, exchanges: int
) -> None:
    wrapped, calls = DistributedDataParallel(nn.Linear(2, 2)), []

    def counted(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        calls.append(bucket.index())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, counted)
    if forward_inside:
        with wrapped.no_sync():
            wrapped(torch.ones(1, 2)).sum().backward()
    else:
        loss = wrapped(torch.ones(1, 2)).sum()
        with wrapped.no_sync():
            loss.backward()
    assert len(calls) == exchanges

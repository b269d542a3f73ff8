"""A process under a launcher: prints its environment and the resulting state of accelerate as JSON.

accelerate_worker.py environment      its environment
accelerate_worker.py fail_once        the same, and ends with an error at the launcher's first attempt
accelerate_worker.py alone            an Accelerator without a backend
accelerate_worker.py start [NAME ...] what framework/distributed/launch.py does: takes NAMEs out of the environment, and
                                      starts an Accelerator with gloo
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from typing import Any


def started() -> dict[str, Any]:
    import torch
    import torch.distributed as dist
    from accelerate import Accelerator, InitProcessGroupKwargs

    os.environ["ACCELERATE_USE_CPU"] = "true"
    waits = timedelta(seconds=77)
    handlers = [InitProcessGroupKwargs(backend="gloo", timeout=waits)]
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=handlers)
    rank, state = accelerator.process_index, accelerator.state
    found: dict[str, Any] = {
        "type": accelerator.distributed_type.value,
        "processes": accelerator.num_processes,
        "backend": dist.get_backend(),
        "precision": accelerator.mixed_precision,
        "accumulation": accelerator.gradient_accumulation_steps,
        "plugins": [state.deepspeed_plugin is not None, getattr(state, "fsdp_plugin", None) is not None],
        "timeout": dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout.total_seconds(),
    }
    part = torch.nn.BatchNorm1d(2)
    wrapped = accelerator.prepare(part)
    wrapped.broadcast_buffers = False  # as framework/distributed/ddp.py does
    part.running_mean.fill_(float(rank))
    part.eval()
    loss = wrapped(torch.full((3, 2), float(rank + 1))).sum()
    found |= {"wrapper": type(wrapped).__name__, "buffer": float(part.running_mean[0])}
    accelerator.backward(loss)
    found["bias_gradient"] = float(part.bias.grad[0])
    with accelerator.no_sync(wrapped):
        accelerator.backward((wrapped(torch.zeros(1, 2)) * rank).sum())
    found["unsynced"] = float(part.bias.grad[0])
    # As framework/distributed/heartbeat.py does.
    client = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    store = dist.PrefixStore("canary", client)
    store.set(f"{rank}", "here")
    store.wait(["0", "1"], timedelta(seconds=30))
    found["seen"] = store.get(f"{1 - rank}").decode()
    accelerator.end_training()
    return found


def main(what: str, names: list[str]) -> None:
    found: dict[str, Any] = {"environment": dict(os.environ), "parent": os.getppid()}
    for name in names:
        os.environ.pop(name, None)
    if what == "start":
        found |= started()
    if what == "alone":
        from accelerate import Accelerator

        found["processes"] = Accelerator().num_processes
    # One write, so that two processes' lines do not mix.
    sys.stdout.write(f"found {json.dumps(found)}\n")
    sys.stdout.flush()
    if what == "fail_once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

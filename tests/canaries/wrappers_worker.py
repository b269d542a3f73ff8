"""One of two processes under torchrun: prints the facts of the other workers as JSON, of both processes."""

from __future__ import annotations

import json
import logging
import os
from datetime import timedelta
from typing import Any

import deepspeed_worker
import fsdp_worker
import outputs_worker
import torch.distributed as dist

if __name__ == "__main__":
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    dist.init_process_group("gloo", timeout=timedelta(seconds=77))
    # First FSDP, which looks at the time-outs of all groups, then DeepSpeed, which creates groups of its own.
    facts = {"fsdp": fsdp_worker.facts(), "deepspeed": deepspeed_worker.facts(), "outputs": outputs_worker.facts()}
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, facts)
    if dist.get_rank() == 0:
        print("facts", json.dumps(gathered), flush=True)
    dist.barrier()
    os._exit(0)  # DeepSpeed's own exit may wait for a peer that has gone

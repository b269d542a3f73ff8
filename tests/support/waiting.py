"""Plugins that wait where a test needs it, or fail as in long runs.

Environment variables control them, not the recipe, so that an interrupted run, the run that resumes it and an
uninterrupted run have the same recipe:

    WAIT=train:5   wait in the 5th training batch; also eval:N (a batch of reports) and topics:1 (finding topics)
    WAIT_IN=DIR    the folder where `reached-RANK` is written, and `go` ends the wait
    WAIT_RANK=1    only in this process
    FITS=4         more exams than that at a time do not fit into memory while training
    BREAK=loss:3   the term of the 3rd training batch is NaN; gradient:3 breaks its gradient alone; with commas
    BREAK_RANK=1   only in this process

They wait and fail in the first attempt of a launcher only, not after a restart.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Batch, Features, Outputs
from framework.registry import register
from plugins.distiller.faiss_kmeans import FaissKMeans
from plugins.encoder.tiny_cnn import TinyCnn

RANK = os.environ.get("RANK", "0")
FIRST_ATTEMPT = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
calls: Counter[str] = Counter()


def wait_at(what: str) -> None:
    """Counts, and waits where it was asked to until the test lets go."""
    calls[what] += 1
    asked = os.environ.get("WAIT") == f"{what}:{calls[what]}" and os.environ.get("WAIT_RANK", RANK) == RANK
    if not (asked and FIRST_ATTEMPT):
        return
    folder = Path(os.environ["WAIT_IN"])
    (folder / f"reached-{RANK}").write_text(str(os.getpid()))
    while not (folder / "go").exists():
        time.sleep(0.02)


@register("encoder", "waiting_cnn")
class WaitingCnn(nn.Module):
    """The tiny encoder, which may wait in a batch, or run out of memory.

    Source:
        Sonoscribe's tests.

    Args:
        width: as of tiny_cnn. [channels]
    """

    gives = ("patches", "pooled")

    def __init__(self, *, channels: int, width: PositiveInt = 64) -> None:
        super().__init__()
        self.inner = TinyCnn(channels=channels, width=width)
        self.width = width

    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        wait_at("train" if self.training else "eval")
        if self.training and len(image_BVCHW) > int(os.environ.get("FITS", len(image_BVCHW))):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.inner(image_BVCHW, view_mask_BV)


@register("distiller", "waiting_topics")
class WaitingTopics(FaissKMeans):
    """K-means, which may wait before it starts.

    Source:
        Sonoscribe's tests.

    Args:
        topics: number of clusters. [topics]
    """

    def __init__(self, *, segment: Callable[[str], list[str]], seed: int, topics: PositiveInt = 4) -> None:
        super().__init__(segment=segment, seed=seed, topics=topics)

    def fit(self, texts: Sequence[str]) -> None:
        wait_at("topics")
        super().fit(texts)


@register("loss", "breaking")
class Breaking(nn.Module):
    """A term of 0, but in the batches that are to break it.

    Source:
        Sonoscribe's tests. Its gradient breaks as that of a norm does at 0.
    """

    needs = ("logits",)

    def count(self, batch: Batch) -> Tensor:
        return batch.report_BT.new_tensor(len(batch.report_BT)).float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        calls["loss"] += 1
        nothing = (outputs.logits_BTW.float() * 0).sum()
        if os.environ.get("BREAK_RANK", RANK) != RANK or not FIRST_ATTEMPT:
            return nothing
        asked = os.environ.get("BREAK", "").split(",")
        if f"loss:{calls['loss']}" in asked:
            return nothing * float("nan")
        if f"gradient:{calls['loss']}" in asked:
            return nothing.square().sqrt()
        return nothing

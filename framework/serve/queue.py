"""The queue before the models: one call at a time, in which exams that wait for the same model are batched."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from framework.evaluation.predict import GeneratedReport, Predictor
from framework.runtime.errors import UserError


class QueueFullError(UserError):
    """As many requests are open as the queue admits.

    Attributes:
        retry_after: seconds after which the exams that wait now are probably done.
    """

    retry_after: int


@dataclass(frozen=True)
class _Waiting:
    predictor: Predictor
    views: np.ndarray  # from `Predictor.load`
    done: asyncio.Future[GeneratedReport]


class ModelQueue:
    """Hands exams to the models in the order in which they came.

    Args:
        limit: open requests beyond which `admit` refuses.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.requests = 0
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._seconds_per_exam = 1.0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Holds a place for a request, from before its body is read until it is answered.

        Raises:
            QueueFullError: all places are taken.
        """
        if self.requests >= self.limit:
            seconds = max(1, math.ceil(self._seconds_per_exam * max(self.waiting, self.requests)))
            error = QueueFullError("queue-full", f"{self.requests} requests are open", expected=f"at most {self.limit}")
            error.retry_after = seconds
            raise error
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def put(self, predictor: Predictor, views: np.ndarray) -> asyncio.Future[GeneratedReport]:
        """The report of an exam, which is generated unless the future is cancelled before its turn."""
        done: asyncio.Future[GeneratedReport] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(predictor, views, done))
        self._arrived.set()
        return done

    async def run(self) -> None:
        """Works until it is cancelled."""
        try:
            while True:
                if batch := self._next_batch():
                    await self._generate(batch)
                    continue
                self._arrived.clear()
                await self._arrived.wait()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _next_batch(self) -> list[_Waiting]:
        """Takes the first exam, and others of the same model up to its batch size."""
        waiting = [each for each in self._waiting if not each.done.cancelled()]
        if not waiting:
            self._waiting.clear()
            return []
        same = [each for each in waiting if each.predictor is waiting[0].predictor]
        batch = same[: waiting[0].predictor.recipe.evaluate.batch_size]
        taken = set(map(id, batch))
        self._waiting = deque(each for each in waiting if id(each) not in taken)
        return batch

    async def _generate(self, batch: list[_Waiting]) -> None:
        started, views = time.monotonic(), [each.views for each in batch]
        call = asyncio.get_running_loop().run_in_executor(self._thread, batch[0].predictor.reports_of, views)
        try:
            reports = await call
        except Exception as error:
            if len(batch) > 1:  # one exam may be the reason, and the others can still be answered
                for each in batch:
                    await self._generate([each])
            elif not batch[0].done.cancelled():
                batch[0].done.set_exception(error)
            return
        self._seconds_per_exam = (time.monotonic() - started) / len(batch)
        for each, report in zip(batch, reports, strict=True):
            if not each.done.cancelled():
                each.done.set_result(report)

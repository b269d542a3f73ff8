"""The queue before the models: order, batches, limit, and errors of one exam."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import problem

from framework.serve.queue import ModelQueue, QueueFullError


class Model:
    """Stands in for a Predictor: an exam is its number."""

    def __init__(self, batch_size: int = 3) -> None:
        self.recipe = SimpleNamespace(evaluate=SimpleNamespace(batch_size=batch_size))
        self.calls: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def reports_of(self, exams: list[np.ndarray]) -> list[str]:
        self.calls.append([int(exam) for exam in exams])
        self.started.set()
        assert self.go.wait(20)
        if any(exam < 0 for exam in exams):
            raise ValueError("negative")
        return [f"report {int(exam)}" for exam in exams]


def put(queue: ModelQueue, model: Model, *numbers: int) -> list[asyncio.Future[Any]]:
    return [queue.put(model, np.array(number)) for number in numbers]  # type: ignore[arg-type]


def working(test: Any) -> None:
    """Runs a test with a queue of 2 requests that works."""

    async def run() -> None:
        queue = ModelQueue(2)
        task = asyncio.create_task(queue.run())
        try:
            await asyncio.wait_for(test(queue), 30)
        finally:
            task.cancel()

    asyncio.run(run())


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


def test_exams_that_wait_together_are_batched_in_their_order() -> None:
    async def test(queue: ModelQueue) -> None:
        model = Model()
        first = put(queue, model, 0)
        await until(model.started)
        rest = put(queue, model, 1, 2, 3, 4)
        model.go.set()
        assert await asyncio.gather(*first, *rest) == [f"report {number}" for number in range(5)]
        assert model.calls == [[0], [1, 2, 3], [4]]

    working(test)


def test_a_batch_is_of_one_model_and_no_model_waits_for_all_exams_of_another() -> None:
    async def test(queue: ModelQueue) -> None:
        one, other = Model(), Model()
        first = put(queue, one, 0)
        await until(one.started)
        rest = [*put(queue, one, 1), *put(queue, other, 2), *put(queue, one, 3, 4, 5)]
        one.go.set()
        other.go.set()
        await asyncio.gather(*first, *rest)
        assert one.calls == [[0], [1, 3, 4], [5]] and other.calls == [[2]]

    working(test)


def test_an_exam_that_fails_does_not_fail_those_beside_it() -> None:
    async def test(queue: ModelQueue) -> None:
        model = Model()
        model.go.set()
        good, bad, last = put(queue, model, 1, -1, 2)
        assert (await good, await last) == ("report 1", "report 2")
        with pytest.raises(ValueError, match="negative"):
            await bad

    working(test)


def test_an_exam_that_nobody_waits_for_is_not_generated() -> None:
    async def test(queue: ModelQueue) -> None:
        model = Model()
        first = put(queue, model, 0)
        await until(model.started)
        gone, stays = put(queue, model, 1, 2)
        gone.cancel()
        model.go.set()
        await asyncio.gather(*first, stays)
        assert model.calls == [[0], [2]] and queue.waiting == 0

    working(test)


def test_requests_beyond_the_limit_are_refused_until_one_is_answered() -> None:
    async def test(queue: ModelQueue) -> None:
        with queue.admit(), queue.admit():
            with problem("queue-full", kind=QueueFullError):
                queue.admit().__enter__()
            try:
                queue.admit().__enter__()
            except QueueFullError as error:
                assert error.retry_after >= 1
        with queue.admit():
            assert queue.requests == 1
        assert queue.requests == 0

    working(test)

"""The index of shards, and the order of an epoch over shards that are fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import problem

from framework.data.loading import BatchPlan, epoch_order
from framework.data.shards import ShardedSplit, ShardFile, ShardIndex, ShardOrder

SHARD_OF = np.repeat(np.arange(6), 5)


def test_an_epoch_reads_the_shards_of_one_group_at_a_time_and_every_exam_once() -> None:
    order = ShardOrder(SHARD_OF, 2)
    found = order(5, 0)
    groups = [set(SHARD_OF[found[start : start + 10]]) for start in (0, 10, 20)]
    assert sorted(found) == list(range(30)) and [len(group) for group in groups] == [2, 2, 2]
    assert len({tuple(order(seed, epoch)) for seed in (5, 6) for epoch in (0, 1)}) == 4
    first = {frozenset(SHARD_OF[order(5, epoch)[:10]]) for epoch in range(8)}
    assert len(first) > 1, "an epoch groups other shards"


def test_an_epoch_over_as_few_shards_as_are_buffered_has_the_order_of_any_data_set() -> None:
    assert ShardOrder(SHARD_OF, 6)(5, 2).tolist() == epoch_order(30, 5, 2).tolist()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_step_has_the_same_exams_for_any_number_of_processes_and_after_resuming(processes: int) -> None:
    order = ShardOrder(SHARD_OF, 2)(5, 1)
    plans = [BatchPlan.plan(8, None, rank, processes) for rank in range(processes)]
    for done in (0, 2):
        steps = np.concatenate([plan.cut(order, done) for plan in plans], axis=1)
        assert steps.tolist() == order[8 * done : 24].reshape(-1, 8).tolist()


def index() -> dict[str, Any]:
    shard = ShardFile("train-000000.tar", 2, 10240, "0" * 64)
    lines = ShardFile("train.jsonl", 2, 200, "0" * 64)
    return json.loads(ShardIndex("k", {"train": ShardedSplit(lines, 2, (shard,))}).to_json())


def test_an_index_is_read_as_it_was_written() -> None:
    text = json.dumps(index(), indent=1)
    assert ShardIndex.from_json(text.encode(), Path("index.json")).to_json() == text


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("wrong-version", lambda found: found.update(version=2)),
        ("wrong-version", lambda found: found.pop("version")),
        ("damaged-file", lambda found: found.pop("key")),
        ("damaged-file", lambda found: found["splits"]["train"]["shards"][0].update(name="../train-000000.tar")),
        ("damaged-file", lambda found: found["splits"]["train"]["shards"][0].update(name="$(id).tar")),
        ("damaged-file", lambda found: found["splits"]["train"]["shards"][0].update(size=-1)),
        ("damaged-file", lambda found: found["splits"]["train"]["lines"].update(exams=3)),
        ("damaged-file", lambda found: found["splits"].update(external=found["splits"]["train"])),
    ],
)
def test_an_index_that_no_version_wrote_is_refused(code: str, change: Any) -> None:
    found = index()
    change(found)
    with problem(code, "index.json"):
        ShardIndex.from_json(json.dumps(found).encode(), Path("index.json"))


def test_an_index_that_is_cut_is_damaged() -> None:
    with problem("damaged-file", "index.json"):
        ShardIndex.from_json(json.dumps(index()).encode()[:-3], Path("index.json"))

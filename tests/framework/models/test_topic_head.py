"""The topic head of a model: found in the task, saved beside the weights, and the same when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import problem
from torch import nn

from framework.checkpoint.export import verify_model
from framework.models.topic_head import TOPIC_HEAD, read_topic_head, topic_head_in, write_topic_head
from plugins.loss.topic import Topic

WORDS = [["cyst", "wall"], ["mass", "shadow"], ["clear"]]


class Task(nn.Module):
    def __init__(self, **losses: nn.Module) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)


def test_a_saved_head_tells_the_topics_of_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = Task(topic=Topic(topic_count=3, feature_width=4, dropout=0.5)).eval()
    name = topic_head_in(task)
    assert name == "losses.topic.head.1"
    write_topic_head(tmp_path, name, task.state_dict(), WORDS)
    head, pooled_BD = read_topic_head(tmp_path, 4), torch.randn(5, 4)
    assert head is not None
    best_B = task.losses["topic"].head(pooled_BD).softmax(-1).max(-1)
    assert [each.topic for each in head.predict(pooled_BD)] == best_B.indices.tolist()
    assert [each.probability for each in head.predict(pooled_BD)] == pytest.approx(best_B.values.tolist(), abs=1e-4)
    assert head.name(1) == "1: mass, shadow"


def test_a_task_without_a_topic_loss_has_no_head(tmp_path: Path) -> None:
    assert topic_head_in(Task(other=nn.Linear(2, 2))) is None and topic_head_in(nn.Linear(2, 2)) is None
    assert read_topic_head(tmp_path, 4) is None


def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    (tmp_path / TOPIC_HEAD).write_bytes(b"no tensors")
    with problem("damaged-file", TOPIC_HEAD):
        read_topic_head(tmp_path, 4)


@pytest.mark.parametrize(("topics", "width"), [(3, 5), (2, 4)])
def test_a_head_of_another_size_is_refused(topics: int, width: int, tmp_path: Path) -> None:
    weights = {"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}
    write_topic_head(tmp_path, "head", weights, WORDS[:topics])
    with problem("does-not-fit", TOPIC_HEAD):
        read_topic_head(tmp_path, width)


def test_a_model_that_was_trained_with_topics_has_its_head(smoke_run: Path) -> None:
    verify_model(smoke_run / "model")
    head = read_topic_head(smoke_run / "model", 64)
    assert head is not None and len(head.words) == len(head.bias_K) == 4

"""The linear head that tells the topic of an exam from its pooled features, saved beside a model trained with it.

Shapes: B exams, D width, K topics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from framework.runtime.errors import UserError

TOPIC_HEAD = "topic_head.safetensors"
SHOWN = 4  # words of a topic


class PredictedTopic(NamedTuple):
    """The most probable topic of an exam."""

    topic: int
    probability: float


@dataclass(frozen=True)
class TopicHead:
    """Weights of the head, and the most characteristic words of each topic."""

    weight_KD: Tensor
    bias_K: Tensor
    words: Sequence[Sequence[str]]

    @torch.no_grad()
    def predict(self, pooled_BD: Tensor) -> list[PredictedTopic]:
        """The topic of each exam."""
        logits_BK = pooled_BD.float() @ self.weight_KD.to(pooled_BD.device).T + self.bias_K.to(pooled_BD.device)
        best_B = logits_BK.softmax(-1).max(-1)
        return [
            PredictedTopic(topic, round(probability, 4))
            for topic, probability in zip(best_B.indices.tolist(), best_B.values.tolist())
        ]

    def name(self, topic: int) -> str:
        return topic_name(topic, self.words[topic])


def topic_name(topic: int, words: Sequence[str]) -> str:
    """`3: cyst, anechoic, wall, posterior`."""
    return f"{topic}: {', '.join(words[:SHOWN])}"


def topic_head_in(task: nn.Module) -> str | None:
    """The name in a task of the `nn.Linear` that a loss has as `topic_head`; None if no loss has one."""
    modules = {id(module): name for name, module in task.named_modules()}
    heads = [getattr(loss, "topic_head", None) for loss in getattr(task, "losses", nn.ModuleDict()).values()]
    return next((modules[id(head)] for head in heads if head is not None), None)


def write_topic_head(folder: Path, name: str, weights: Mapping[str, Tensor], words: Sequence[Sequence[str]]) -> None:
    """Writes the head of this name to a new model.

    Args:
        weights: of the task, by name.
    """
    tensors = {part: weights[f"{name}.{part}"].float().contiguous() for part in ("weight", "bias")}
    save_file(tensors, folder / TOPIC_HEAD, metadata={"words": json.dumps([list(each) for each in words])})


def read_topic_head(model: Path, width: int) -> TopicHead | None:
    """The topic head of an exported model; None if it was trained without one.

    Args:
        width: of the encoder.

    Raises:
        UserError: `damaged-file`, or `does-not-fit` if the head is of another width or number of topics.
    """
    path = model / TOPIC_HEAD
    if not path.is_file():
        return None
    hint = "Copy the run's model/ again."
    try:
        with safe_open(path, framework="pt") as file:
            words = TypeAdapter(list[list[str]]).validate_json((file.metadata() or {})["words"])
            head = TopicHead(file.get_tensor("weight"), file.get_tensor("bias"), words)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError("damaged-file", str(error), place=path, hint=hint) from None
    shapes = [tuple(head.weight_KD.shape), tuple(head.bias_K.shape)]
    if shapes != [(len(words), width), (len(words),)]:
        expected = f"[{len(words)}, {width}] and [{len(words)}]"
        raise UserError("does-not-fit", f"a head of {shapes}", place=path, expected=expected, hint=hint)
    return head

"""A DeepSpeed file adds to the recipe, and may not differ from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, problem

from framework.data.loading import BatchPlan
from framework.distributed.deepspeed_config import deepspeed_config
from framework.recipe import load_recipe

SMOKE = str(ROOT / "recipes" / "smoke.yaml")


def config_of(folder: Path, content: Any, *keys: str) -> dict[str, Any]:
    path = folder / "mine.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    recipe = load_recipe(SMOKE, ["distributed.strategy=zero2", f"distributed.deepspeed_config={path}", *keys])
    return deepspeed_config(recipe, BatchPlan.plan(8, 2, 0, 2))


def test_a_file_adds_keys_and_may_repeat_those_of_the_recipe(tmp_path: Path) -> None:
    zero = {"stage": 2, "reduce_bucket_size": 12345}
    found = config_of(tmp_path, {"zero_optimization": zero, "train_batch_size": 8, "wall_clock_breakdown": True})
    assert found["zero_optimization"] == {**zero, "compute_grad_norm": True}
    assert found["wall_clock_breakdown"] is True
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [found[name] for name in sizes] == [8, 2, 2] and found["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ({"train_batch_size": 16}, "conflicting-settings", "train_batch_size is 16"),
        ({"train_micro_batch_size_per_gpu": 4}, "conflicting-settings", "train_micro_batch_size_per_gpu is 4"),
        ({"gradient_clipping": 0.5}, "conflicting-settings", "gradient_clipping is 0.5"),
        ({"zero_optimization": {"stage": 3}}, "conflicting-settings", "zero_optimization.stage is 3"),
        ({"zero_optimization": 2}, "wrong-type", "zero_optimization is 2"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "out-of-range", "zero_optimization.reduce_bucket_size"),
        ({"train_batch_size": "auto"}, "out-of-range", "train_batch_size"),
        ({"zero_optimization": {"sub": [{"x": "auto"}]}}, "out-of-range", "zero_optimization.sub.0.x"),
        ({"bf16": {"enabled": True}}, "unknown-key", "train.precision"),
        ({"optimizer": {"type": "Adam"}}, "unknown-key", "optimizer"),
        ({"scheduler": {}}, "unknown-key", "schedule"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "unknown-key", "train.precision"),
        ({"communication_data_type": "fp16"}, "unknown-key", "train.precision"),
    ],
)
def test_a_file_that_sets_what_the_recipe_owns_is_refused(
    tmp_path: Path, content: Any, code: str, message: str
) -> None:
    with problem(code, place="mine.json") as found:
        config_of(tmp_path, content)
    assert message in str(found[0])


@pytest.mark.parametrize(("content", "code"), [(None, "no-such-file"), ("[1]", "wrong-format"), ("{", "wrong-format")])
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path: Path, content: str | None, code: str) -> None:
    with problem(code, place="distributed.deepspeed_config"):
        config_of(tmp_path, content)


@pytest.mark.parametrize(
    ("section", "device", "offload"),
    [
        ("offload_optimizer", "cpu", "none"),
        ("offload_param", "nvme", "none"),
        ("offload_param", "cpu", "optimizer"),
        ("offload_optimizer", "none", "optimizer"),
    ],
)
def test_a_file_that_offloads_to_another_device_is_refused(
    tmp_path: Path, section: str, device: str, offload: str
) -> None:
    with problem("conflicting-settings", place="mine.json") as found:
        config_of(tmp_path, {"zero_optimization": {section: {"device": device}}}, f"distributed.offload={offload}")
    assert f"zero_optimization.{section}.device is '{device}'" in found[0].found


def test_a_file_may_set_how_tensors_are_offloaded(tmp_path: Path) -> None:
    pinned = {"device": "cpu", "pin_memory": True}
    content = {"zero_optimization": {"offload_optimizer": pinned}}
    found = config_of(tmp_path, content, "distributed.offload=optimizer")
    assert found["zero_optimization"]["offload_optimizer"] == pinned

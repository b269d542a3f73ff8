"""On a GPU the update is one fused kernel, which needs no answer from the device to skip a step."""

from __future__ import annotations

import importlib

import pytest

from framework.testing.optimizer import check_optimizer


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_optimizer_is_fused_on_a_gpu_and_meets_its_contract(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = importlib.import_module(f"plugins.optimizer.{name}")
    build = getattr(module, name)
    monkeypatch.setattr(module, "on_cpu", lambda: False)  # fused kernels exist for the CPU as well
    check_optimizer(build)
    fused: list[bool] = []
    check_optimizer(lambda **keys: fused.append(build(**keys).defaults["fused"]) or build(**keys))
    assert all(fused)

"""What a recipe will build and cost, without training: `plan` from sizes alone, `probe` from a few real steps."""

from __future__ import annotations

from framework.plan.probe import Probe, probe
from framework.plan.whole import Plan, plan

__all__ = ["Plan", "Probe", "plan", "probe"]

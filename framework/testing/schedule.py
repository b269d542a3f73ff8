"""The contract of a schedule."""

from __future__ import annotations

import math

from framework.testing.contract import Make, build_plugin, require, runs


def check_schedule(make: Make) -> None:
    """Checks a schedule against its contract, for short trainings and long ones.

    Args:
        make: The function, or one that builds it; receives `steps`.

    Raises:
        ContractError: the first rule that it breaks.
    """
    for steps in (1, 2, 7, 100):
        rule = f"a schedule returns a factor for every step from 0 to {steps}"
        fix = "handle trainings of one step, and the step after the last"
        with runs(rule, expected="numbers", fix=fix):
            factor = build_plugin(make, steps=steps)
            factors = [float(factor(step)) for step in range(steps + 1)]
        broken = {step: value for step, value in enumerate(factors) if not math.isfinite(value) or value < 0}
        require(not broken, rule, found=broken, expected="finite, and 0 or more", fix=fix)
        require(
            max(factors[:steps]) > 0,
            "some factor is above 0",
            found=f"0 at all {steps} steps",
            expected="a factor above 0",
            fix="start a warmup above 0: (step + 1) / warmup_steps",
        )
        rule, fix = "a factor depends only on the step, so that a resumed run continues unchanged", "count no calls"
        backwards = [float(factor(step)) for step in reversed(range(steps + 1))][::-1]
        for again in (backwards, [float(build_plugin(make, steps=steps)(step)) for step in range(steps + 1)]):
            step = next((n for n, (one, two) in enumerate(zip(again, factors)) if one != two), None)
            found = f"{again[step or 0]} and {factors[step or 0]} at step {step} of {steps}"
            require(step is None, rule, found=found, expected="the same twice", fix=fix)

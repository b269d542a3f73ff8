"""What a schedule promises."""

from __future__ import annotations

import math

from framework.testing.promise import Make, hold, made, promised


def check_schedule(make: Make) -> None:
    """Holds a schedule to its contract, for short trainings and long ones.

    Args:
        make: The function, or what makes one; gets `steps`.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    for steps in (1, 2, 7, 100):
        promise = f"a schedule gives a factor of the rate at every step from 0 to {steps}"
        fix = "mind trainings of a single step, and the step after the last"
        with promised(promise, expected="numbers", fix=fix):
            factor = made(make, steps=steps)
            factors = [float(factor(step)) for step in range(steps + 1)]
        broken = {step: value for step, value in enumerate(factors) if not math.isfinite(value) or value < 0}
        hold(not broken, promise, found=broken, expected="finite, and 0 or more", fix=fix)
        hold(
            max(factors[:steps]) > 0,
            "some step learns",
            found=f"0 at all {steps} steps",
            expected="a factor above 0",
            fix="start a warm-up above 0: (step + 1) / rise",
        )
        promise, fix = "a factor depends on the step alone, so that a resumed run goes on as before", "keep no count"
        backwards = [float(factor(step)) for step in reversed(range(steps + 1))][::-1]
        for again in (backwards, [float(made(make, steps=steps)(step)) for step in range(steps + 1)]):
            step = next((n for n, (one, two) in enumerate(zip(again, factors)) if one != two), None)
            found = f"{again[step or 0]} and {factors[step or 0]} at step {step} of {steps}"
            hold(step is None, promise, found=found, expected="the same twice", fix=fix)

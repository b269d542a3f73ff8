"""Every code of an error that a user can cause: what it means, and what to do.

docs/troubleshooting.md is generated from this table; tests/docs/test_troubleshooting.py checks that each code is used.
A code names the mistake, not the place: `unknown-key` is the same in a recipe, a grid and a plugin's block.
"""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    # Recipes and grids
    "renamed-key": (
        "The key has another name since version 0.6.",
        "Write the new key, which the message names.",
    ),
    # Runs and checkpoints
    "out-of-memory": (
        "The GPU cannot hold the micro-batch.",
        "Set what the message names: a smaller micro-batch, activation checkpointing, smaller images, or fsdp.",
    ),
}

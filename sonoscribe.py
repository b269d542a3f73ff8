"""The Python interface of Sonoscribe.

    import sonoscribe

    model = sonoscribe.load("runs/breast/20260101-120000-ab12cd34")
    print(model.report(["left.png", "right.png"]))
    reports = model.reports([["a.png"], ["b.png", "c.png"]])

    run = sonoscribe.train("breast", ["train.epochs=3"])

`register` is the decorator of plugins. torch is imported by `load` and `train` only.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

_OURS = Path(__file__).resolve().with_name("framework") / "__init__.py"
_spec = importlib.util.find_spec("framework")
if _spec is None or Path(_spec.origin or "").resolve() != _OURS:
    _found = _spec and (_spec.origin or next(iter(_spec.submodule_search_locations or ()), None))
    raise ImportError(
        f"found the package 'framework' in {_found}, expected {_OURS}. Rename yours, or put the folder of Sonoscribe "
        "first in PYTHONPATH. [shadowed-package]"
    )

from framework.registry import register  # noqa: E402

if TYPE_CHECKING:
    from framework.evaluation.predict import Predictor

__all__ = ["load", "register", "train"]


def load(name: str | Path, *, trust: bool = False) -> Predictor:
    """Loads the model of a run, on the GPU if there is one. Its `report(images)` returns the report of one exam, and
    `reports(exams)` those of many, with the confidence of each word and where the model looked.

    Args:
        name: folder of a run (runs/RECIPE/NAME) or of an exported model (runs/RECIPE/NAME/model); or OWNER/NAME of a
            model on the hub of Hugging Face, which is downloaded once and checked by its hashes.
        trust: runs plugin files that come with the model, and remembers their hashes.

    Raises:
        UserError: there is no model, it is damaged or of another version, it comes with code that is not trusted, or
            the hub refuses.
    """
    from framework.runtime.home import provide_home

    provide_home()
    from framework.deploy.hub import find_model

    folder = find_model(name)
    if trust:
        from framework.cli.options import trust_code_of

        trust_code_of(folder)
    from framework.evaluation.predict import Predictor

    return Predictor(folder)


def train(recipe: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Trains and evaluates a recipe on this process, as `launch.py RECIPE [key=value ...]` does.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: `key=value`, `+key=value`, `~key` or `data=NAME`.

    Returns:
        the folder of the run.

    Raises:
        UserError: the recipe has mistakes, its data cannot be used, or this is not the main thread.
    """
    from framework.recipe import load_recipe
    from framework.runtime.home import provide_home

    provide_home()
    from framework.runtime.errors import UserError

    if isinstance(overrides, str):
        raise UserError("wrong-type", "found a text", place="overrides", expected=f"a list: [{overrides!r}]")
    if threading.current_thread() is not threading.main_thread():
        hint = "Call it in the main thread, or start launch.py as a process."
        raise UserError("unsupported", "sonoscribe.train handles signals, which only the main thread can", hint=hint)
    loaded = load_recipe(recipe, overrides)  # before the slow import, so that mistakes show at once
    from framework.runtime.signals import handlers_restored
    from framework.trainer import train as run_training

    with handlers_restored():
        return run_training(loaded)

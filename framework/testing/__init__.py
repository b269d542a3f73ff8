"""The contract of every kind of plugin, as checks for a plugin's own tests.

    from framework.testing import check_encoder
    from my_package.wavelet import Wavelet

    def test_wavelet_keeps_the_contract_of_encoders():
        check_encoder(lambda **given: Wavelet(width=16, **given))

A check makes the plugin again and again, with run-time values of its own choosing; `make` is the class itself, or
whatever gives one. It raises `ContractError` (an AssertionError) that names the rule, what was found, what was
expected, and the way out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.registry import KINDS, PluginError, catalogue, find, load
from framework.registry.source import unknown_kind
from framework.testing.augment import check_augment
from framework.testing.contract import ContractError, Make
from framework.testing.dataset import check_dataset
from framework.testing.decoder import check_decoder
from framework.testing.distiller import check_distiller
from framework.testing.encoder import check_encoder
from framework.testing.executor import check_executor
from framework.testing.loss import check_loss
from framework.testing.metric import check_metric
from framework.testing.optimizer import check_optimizer
from framework.testing.schedule import check_schedule
from framework.testing.tokenizer import check_tokenizer

CHECKS: dict[str, Callable[..., None]] = {
    "dataset": check_dataset,
    "tokenizer": check_tokenizer,
    "augment": check_augment,
    "encoder": check_encoder,
    "decoder": check_decoder,
    "distiller": check_distiller,
    "loss": check_loss,
    "metric": check_metric,
    "optimizer": check_optimizer,
    "schedule": check_schedule,
    "executor": check_executor,
}


def check(kind: str, make: Make, **settings: Any) -> None:
    """Checks a plugin against the contract of its kind; `settings` are those of the kind's check."""
    if kind not in CHECKS:
        raise PluginError.of([unknown_kind(kind)])
    CHECKS[kind](make, **settings)


def plugin(path: Path, kind: str, name: str) -> Any:
    """The class or function in a plugin file, loaded as a recipe loads it; for tests beside the file."""
    path = path.resolve()
    known = catalogue().get((kind, name))
    return load(known if known is not None and known.path == path else find(kind, name, (path,)))


__all__ = ["CHECKS", "ContractError", "check", "plugin", *sorted(f"check_{kind}" for kind in KINDS)]

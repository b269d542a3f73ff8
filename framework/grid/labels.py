"""What people call the keys and values that cells differ in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from framework.recipe.describe import as_yaml


def as_label(value: Any) -> str:
    """A value as a recipe would write it."""
    return value if isinstance(value, str) else as_yaml(value)


def labels_of(values: Sequence[Any]) -> tuple[str, ...]:
    """Labels of values that have none: a plugin's name, with the keys in which plugins of that name differ."""
    labels = []
    for value in values:
        if not (isinstance(value, dict) and isinstance(value.get("name"), str)):
            labels.append(as_label(value))
            continue
        alike = [other for other in values if isinstance(other, dict) and other.get("name") == value["name"]]
        own = [key for key in value if any(other.get(key, ...) != value[key] for other in alike)]
        labels.append(" ".join([value["name"], *(f"{key}={as_label(value[key])}" for key in own)]))
    return tuple(labels)


def names_of(keys: Iterable[str]) -> dict[str, str]:
    """What each dotted key is called: `encoder.width` for model.encoder.width, unless another would be called so."""
    short = {key: key.split(".", 1)[-1] for key in keys}
    taken = Counter(short.values())
    return {key: name if taken[name] == 1 else key for key, name in short.items()}


def fingerprint(value: Any) -> str:
    """A text that equal values share, and no others: 1, 1.0 and true are three."""
    return json.dumps(value, sort_keys=True)

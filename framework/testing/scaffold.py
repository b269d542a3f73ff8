"""Writes a new plugin and its test from a working template."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from framework.registry import KINDS, PluginError, catalogue, short
from framework.registry.source import unknown_kind
from framework.runtime.files import atomic_write

TEMPLATES = Path(__file__).with_name("templates")
TEST = "testfile.py"
NAME = re.compile(r"[a-z][a-z0-9_]*")
WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # between the words of MyLoss


def write_plugin(kind: str, name: str, folder: Path, *, shipped: bool = False) -> tuple[Path, Path]:
    """Writes `folder/NAME.py` and `folder/test_NAME.py`, and returns both paths.

    Args:
        name: The name in recipes; `vendor/name` for a plugin of an installed package, in a file called `name.py`.
        shipped: `folder` is the root of this repository; the files are written beside its plugins and tests.

    Raises:
        PluginError: the kind is not known, the name is invalid or taken, or a file exists.
    """
    if kind not in KINDS:
        raise PluginError.of([unknown_kind(kind)])
    _check_name(kind, name, shipped)
    own = name.split("/")[-1]
    if shipped:
        path, test = folder / "plugins" / kind / f"{own}.py", folder / "tests" / "plugins" / kind / f"test_{own}.py"
    else:
        path, test = folder / f"{own}.py", folder / f"test_{own}.py"
    for file in (path, test):
        if file.exists():
            raise PluginError(
                "file-exists", "this file exists", place=short(file), hint="Choose another name or folder."
            )
    for file, text in ((path, _plugin(kind, name)), (test, _test(kind, name, shipped))):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, text)
    return path, test


def _check_name(kind: str, name: str, shipped: bool) -> None:
    parts = name.split("/")
    if len(parts) > 2 or not all(NAME.fullmatch(part) and not keyword.iskeyword(part) for part in parts):
        suggestion = re.sub(r"[^a-z0-9_/]+", "_", WORDS.sub("_", name).lower()).strip("_")
        hint = f"Try '{suggestion}'." if NAME.fullmatch(suggestion) and not keyword.iskeyword(suggestion) else ""
        raise PluginError(
            "wrong-format", f"found the plugin name '{name}'", hint=hint,
            expected="lowercase letters, digits and _, a letter first, or vendor/name",
        )  # fmt: skip
    if shipped and len(parts) > 1:
        raise PluginError(
            "wrong-format", f"found the plugin name '{name}'", expected=f"'{parts[-1]}': shipped plugins have no vendor"
        )
    taken = catalogue().get((kind, name))
    if taken is not None:
        raise PluginError(
            "duplicate-name", f"{kind} '{name}' exists", place=taken.where,
            hint=f"Choose another name, or vendor/{parts[-1]}.",
        )  # fmt: skip


def _plugin(kind: str, name: str) -> str:
    """The template of a kind under another name. Replaces `my_KIND` and `MyKind`."""
    text = (TEMPLATES / f"{kind}.py").read_text(encoding="utf-8")
    own = name.split("/")[-1]
    class_name = "".join(part.capitalize() for part in own.split("_"))
    text = text.replace(f'@register("{kind}", "my_{kind}")', f'@register("{kind}", "{name}")')
    text = text.replace(f"def my_{kind}(", f"def {_free(own, kind, text)}(")
    text = text.replace(f"My{kind.capitalize()}", _free(class_name, kind.capitalize(), text))
    return text.replace(f"my_{kind}", own)


def _free(word: str, kind: str, text: str) -> str:
    """A name that a template does not use for something else than the plugin itself."""
    if word.lower().replace("_", "") == f"my{kind.lower()}":
        return word
    return word if not re.search(rf"\b{word}\b", text) else f"{word}_{kind}" if word.islower() else f"{word}{kind}"


def _test(kind: str, name: str, shipped: bool) -> str:
    text = (TEMPLATES / TEST).read_text(encoding="utf-8")
    if shipped:  # known by its name alone
        text = text.replace('.with_name("OWN.py")', '.resolve().parents[3] / "plugins" / "KIND" / "OWN.py"')
        text = text.replace(", (FILE,))", ")")
    return text.replace("KIND", kind).replace("NAME", name).replace("OWN", name.split("/")[-1])

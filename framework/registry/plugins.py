"""Finds plugins without importing them, and imports the ones that a recipe names.

A plugin is a class (or function) decorated with `@register(kind, name)`, in one of three places: a file in
`plugins/<kind>/`, a file that a recipe names, or a package with an entry point in `sonoscribe.<kind>`. Files are read
as text, so `ls`, `describe` and `validate` stay fast however slow a plugin's imports are.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from framework.registry.plugin_file import import_file
from framework.registry.source import (
    KINDS,
    Plugin,
    PluginError,
    did_you_mean,
    invalid_name,
    read_plugins,
    short,
    unknown_kind,
    unknown_name,
)

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
GROUP = "sonoscribe."  # of entry points, before the kind
T = TypeVar("T")


@dataclass(frozen=True)
class Broken:
    """A plugin that cannot be used, and why. `name` is "?" if it cannot be read."""

    kind: str
    name: str
    where: str
    reason: str


def register(kind: str, name: str, *, replace: bool = False) -> Callable[[T], T]:
    """Registers a class or function as the plugin `kind/name`. All arguments are literals, since they are read as text.

    Args:
        kind: a key of `KINDS`.
        name: `name`, or `vendor/name` for a plugin of an installed package.
        replace: in a file that a recipe names, replaces the plugin that has this name.
    """
    problem = unknown_kind(kind) if kind not in KINDS else invalid_name(name)
    if problem:
        raise PluginError.of([problem])

    def decorate(plugin: T) -> T:
        plugin.registered = (kind, name)  # type: ignore[attr-defined]
        return plugin

    return decorate


def _shipped() -> Iterator[Plugin | Broken]:
    for kind in KINDS:
        files = [path for path in sorted((PLUGINS / kind).glob("*.py")) if path.name != "__init__.py"]
        for path in [*files, *sorted((PLUGINS / kind).glob("*/__init__.py"))]:
            stem = path.parent.name if path.name == "__init__.py" else path.stem
            try:
                yield from [_not_replacing(p) for p in _some_plugins(path, f"plugins.{kind}.{stem}", "shipped")]
            except PluginError as error:
                yield Broken(kind, stem, short(path), error.problems[0].message)


def _some_plugins(path: Path, module: str | None, origin: str) -> list[Plugin]:
    plugins = read_plugins(path, module, origin)
    if not plugins:
        raise PluginError(
            "invalid-plugin", "registers no plugin", place=short(path),
            hint='Put @register("kind", "name") above a class.',
        )  # fmt: skip
    return plugins


def _not_replacing(plugin: Plugin) -> Plugin:
    if plugin.replace:
        raise PluginError(
            "invalid-plugin", "found replace=True outside a file that a recipe names", place=plugin.where,
            hint="Remove it.",
        )  # fmt: skip
    return plugin


def _installed() -> Iterator[Plugin | Broken]:
    """Plugins of other packages, from their entry points. Their modules are read as text, not imported."""
    for item in _entry_points():
        if isinstance(item, Broken):
            yield item
            continue
        package, point = item
        kind = point.group.removeprefix(GROUP)
        try:
            yield _plugin_of_entry_point(kind, point, package)
        except PluginError as error:
            yield Broken(kind, point.name, f"{package}: {point.name} = {point.value}", error.problems[0].message)


def _entry_points() -> Iterator[tuple[str, importlib.metadata.EntryPoint] | Broken]:
    """Entry points of plugins, each with the name and version of its package.

    Not by `importlib.metadata.entry_points`, which fails for all packages if one of them has an unreadable file.
    """
    seen = set()
    for package in importlib.metadata.distributions():
        try:
            points = [point for point in package.entry_points if point.group.startswith(GROUP)]
            name = package.metadata["Name"] if points else None
            version = package.version if points else None
        except Exception as error:  # any error of its parser
            where = str(package.locate_file(""))
            yield Broken("?", "?", where, f"the entry points of a package cannot be read: {_describe_error(error)}")
            continue
        if points and name not in seen:  # a package that is on the path twice is imported from the first
            seen.add(name)
            yield from ((f"{name} {version}", point) for point in points)


def _plugin_of_entry_point(kind: str, point: importlib.metadata.EntryPoint, package: str) -> Plugin:
    if kind not in KINDS:
        raise PluginError.of([unknown_kind(kind, point.group)])
    if "/" not in point.name or invalid_name(point.name):
        raise PluginError(
            "wrong-format", f"found the entry point '{point.name}'",
            expected="vendor/name, in the entry point and in @register",
        )  # fmt: skip
    module = point.value.split(":")[0].strip()
    path = _file_of(module)
    if path is None:
        raise PluginError("import-failed", f"there is no module {module}")
    plugins = [plugin for plugin in read_plugins(path, module, package) if plugin.kind == kind]
    for plugin in plugins:
        if plugin.name == point.name:
            return _not_replacing(plugin)
    raise PluginError.of([unknown_name(kind, point.name, [plugin.name for plugin in plugins], place=short(path))])


def _file_of(module: str) -> Path | None:
    """The file of a module. Unlike `importlib.util.find_spec`, does not import the packages around it."""
    spec, within, parts = None, None, module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None  # finders fail on these
    for depth in range(len(parts)):
        name = ".".join(parts[: depth + 1])
        # All finders, since an editable installation adds its own.
        finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, within) for finder in finders)), None)
        if spec is None or (depth + 1 < len(parts) and spec.submodule_search_locations is None):
            return None
        within = spec.submodule_search_locations
    return None if spec is None or spec.origin is None else Path(spec.origin)


@cache
def _without_files() -> tuple[dict[tuple[str, str], Plugin], tuple[Broken, ...]]:
    """Shipped and installed plugins, and those of them that cannot be used."""
    known: dict[tuple[str, str], Plugin] = {}
    bad = []
    clashes: dict[tuple[str, str], Broken] = {}
    for item in [*_shipped(), *_installed()]:
        if isinstance(item, Broken):
            bad.append(item)
            continue
        key = (item.kind, item.name)
        if key in known:
            both = f"{known[key].where} ({known[key].origin}) and {item.where} ({item.origin})"
            clashes[key] = Broken(*key, item.where, f"two plugins have this name: {both}; remove one")
        known.setdefault(key, item)
    return {key: plugin for key, plugin in known.items() if key not in clashes}, (*bad, *clashes.values())


@cache
def _with_files(files: tuple[Path, ...]) -> tuple[dict[tuple[str, str], Plugin], tuple[tuple[Plugin, Plugin], ...]]:
    """All plugins of a recipe with these files, and which (new, old) they replace."""
    known = dict(_without_files()[0])
    replacements = []
    for path in files:
        if not path.is_file():
            raise PluginError("no-such-file", "no such plugin file", place=short(path))
        for plugin in _some_plugins(path, None, "file"):
            key = (plugin.kind, plugin.name)
            old = known.get(key)
            if plugin.replace and old is None:
                names = sorted(name for kind, name in known if kind == plugin.kind)
                raise PluginError.of([unknown_name(plugin.kind, plugin.name, names, place=plugin.where)])
            if old is not None and not plugin.replace:
                raise PluginError(
                    "duplicate-name", f"{plugin.kind}/{plugin.name} is also defined in {old.where}", place=plugin.where,
                    hint=f'Rename yours, or replace it: @register("{plugin.kind}", "{plugin.name}", replace=True)',
                )  # fmt: skip
            if old is not None:
                replacements.append((plugin, old))
            known[key] = plugin
    return known, tuple(replacements)


def catalogue(files: tuple[Path, ...] = ()) -> dict[tuple[str, str], Plugin]:
    """Every readable plugin by (kind, name): shipped, installed, and those of `files`.

    Raises:
        PluginError: one of `files` does not parse, has no plugin, or has one whose name is taken.
    """
    return _with_files(files)[0]


def replaced(files: tuple[Path, ...]) -> tuple[tuple[Plugin, Plugin], ...]:
    """The plugins of `files` that replace others: (new, old)."""
    return _with_files(files)[1]


def broken(files: tuple[Path, ...] = (), *, importing: bool = False) -> list[Broken]:
    """The plugins that cannot be used, with their reasons.

    Args:
        importing: also imports all others, to find those whose imports fail. Slow.
    """
    found = list(_without_files()[1])
    for plugin in catalogue(files).values() if importing else ():
        try:
            _import(plugin)
        except (Exception, SystemExit) as error:
            found.append(Broken(plugin.kind, plugin.name, plugin.where, _describe_error(error)))
    return found


def find(kind: str, name: str, files: tuple[Path, ...] = ()) -> Plugin:
    """The plugin of this kind and name, not imported.

    Raises:
        PluginError: there is none, or it cannot be used.
    """
    known = catalogue(files)
    if (kind, name) in known:
        return known[kind, name]
    for item in broken(files):
        if (item.kind, item.name) == (kind, name):
            raise unusable(item)
    names = sorted(n for k, n in known if k == kind)
    # `wavelet` finds `acme/wavelet`
    near = next((n for n in names if n.split("/")[-1] == name), name)
    hint = f"{did_you_mean(near, names)} Known: {', '.join(names)}".strip()
    raise PluginError("unknown-name", f"unknown {kind} '{name}'", hint=hint)


def unusable(item: Broken) -> PluginError:
    return PluginError("invalid-plugin", f"{item.kind} '{item.name}' cannot be used: {item.reason}", place=item.where)


def load(plugin: Plugin) -> Any:
    """Imports a plugin's module and returns the class or function.

    Raises:
        PluginError: the import fails. A plugin's module may raise anything.
    """
    try:
        return _import(plugin)
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{plugin.kind} '{plugin.name}' does not import: {_describe_error(error)}"
        raise PluginError("import-failed", reason, place=plugin.where) from error


def _import(plugin: Plugin) -> Any:
    if plugin.origin == "shipped":
        _refuse_shadow(PLUGINS)
    module = import_file(plugin.path) if plugin.module is None else importlib.import_module(plugin.module)
    return getattr(module, plugin.qualname)


def _refuse_shadow(package: Path) -> None:
    """Raises if the name of one of our packages finds somebody else's."""
    spec = importlib.util.find_spec(package.name)
    found = None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    if found is not None and Path(found).resolve() != (package / "__init__.py").resolve():
        raise PluginError(
            "shadowed-package",
            f"found the package '{package.name}' in {short(Path(found))}",
            expected=f"the one in {short(package)}",
            hint="Rename yours, or start the command line with launch.py or `sonoscribe`.",
        )


def _describe_error(error: BaseException) -> str:
    """The message, with the type before it unless it is an ImportError, whose message is clear without."""
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}".removesuffix(": ")

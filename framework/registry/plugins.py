"""Finds plugins without importing them, and imports the one that a recipe names.

A plugin is a class (or function) under `@register(kind, name)`, in one of three places: a file in `plugins/<kind>/`, a
file that a recipe names, or a package with an entry point in `sonoscribe.<kind>`. Files are read as text, so `ls`,
`describe` and `validate` stay quick however heavy a plugin's imports are.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from framework.registry.source import (
    KINDS,
    NEEDS_TOPICS,
    Kind,
    Plugin,
    PluginError,
    bad_name,
    did_you_mean,
    read_plugins,
    short,
    unknown_kind,
)

__all__ = [
    "KINDS",
    "NEEDS_TOPICS",
    "Broken",
    "Kind",
    "Plugin",
    "PluginError",
    "broken",
    "catalogue",
    "did_you_mean",
    "find",
    "load",
    "register",
    "replaced",
    "short",
    "unusable",
]

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
GROUP = "sonoscribe."  # of entry points, before the kind
T = TypeVar("T")


@dataclass(frozen=True)
class Broken:
    """A plugin that cannot be had, and why. `name` is "?" where the file does not even tell its names."""

    kind: str
    name: str
    where: str
    reason: str


def register(kind: str, name: str, *, replace: bool = False) -> Callable[[T], T]:
    """Marks a class or function as the plugin `kind/name`. All of it must be written out, as it is read as text.

    Args:
        name: `name`, or `vendor/name` for a plugin of an installed package.
        replace: In a file that a recipe names: takes the place of the plugin that has this name.
    """
    problem = unknown_kind(kind) if kind not in KINDS else bad_name(name)
    if problem:
        raise PluginError(problem)

    def mark(plugin: T) -> T:
        plugin.registered = (kind, name)  # type: ignore[attr-defined]
        return plugin

    return mark


def _shipped() -> Iterator[Plugin | Broken]:
    for kind in KINDS:
        files = [path for path in sorted((PLUGINS / kind).glob("*.py")) if path.name != "__init__.py"]
        for path in [*files, *sorted((PLUGINS / kind).glob("*/__init__.py"))]:
            stem = path.parent.name if path.name == "__init__.py" else path.stem
            try:
                yield from [_beside_others(p) for p in _some_plugins(path, f"plugins.{kind}.{stem}", "shipped")]
            except PluginError as error:
                yield Broken(kind, stem, short(path), str(error))


def _some_plugins(path: Path, module: str | None, origin: str) -> list[Plugin]:
    found = read_plugins(path, module, origin)
    if not found:
        raise PluginError(f'{short(path)}: registers no plugin; put @register("kind", "name") over a class')
    return found


def _beside_others(plugin: Plugin) -> Plugin:
    if plugin.replace:
        raise PluginError(f"{plugin.where}: replace=True is for files that a recipe names")
    return plugin


def _installed() -> Iterator[Plugin | Broken]:
    """Plugins of other packages: their entry points are metadata, and their modules are read, not imported."""
    for item in _entry_points():
        if isinstance(item, Broken):
            yield item
            continue
        package, point = item
        kind = point.group.removeprefix(GROUP)
        try:
            yield _at(kind, point, package)
        except PluginError as error:
            yield Broken(kind, point.name, f"{package}: {point.name} = {point.value}", str(error))


def _entry_points() -> Iterator[tuple[str, importlib.metadata.EntryPoint] | Broken]:
    """Ours, each with the name and version of its package.

    Not by `importlib.metadata.entry_points`, which fails for all packages where one has a file that it cannot read.
    """
    seen = set()
    for package in importlib.metadata.distributions():
        try:
            points = [point for point in package.entry_points if point.group.startswith(GROUP)]
            name = package.metadata["Name"] if points else None
            version = package.version if points else None
        except Exception as error:  # whatever its parser stumbles over
            where = str(package.locate_file(""))
            yield Broken("?", "?", where, f"the entry points of a package here cannot be read: {_why(error)}")
            continue
        if points and name not in seen:  # one that stands twice on the path counts where it is imported from
            seen.add(name)
            yield from ((f"{name} {version}", point) for point in points)


def _at(kind: str, point: importlib.metadata.EntryPoint, package: str) -> Plugin:
    if kind not in KINDS:
        raise PluginError(f"the entry point stands in {point.group}. {unknown_kind(kind)}")
    if "/" not in point.name or bad_name(point.name):
        raise PluginError(
            f"an installed plugin is called vendor/name, in its entry point and in @register; found '{point.name}'"
        )
    module = point.value.split(":")[0].strip()
    path = _file_of(module)
    if path is None:
        raise PluginError(f"there is no module {module}")
    here = [plugin for plugin in read_plugins(path, module, package) if plugin.kind == kind]
    for plugin in here:
        if plugin.name == point.name:
            return _beside_others(plugin)
    names = ", ".join(plugin.name for plugin in here) or "none"
    raise PluginError(f"{short(path)} registers no {kind} '{point.name}'; it registers {names}")


def _file_of(module: str) -> Path | None:
    """The file of a module. The packages around it are not imported, as `importlib.util.find_spec` would."""
    spec, within, parts = None, None, module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None  # finders stumble over these
    for depth in range(len(parts)):
        name = ".".join(parts[: depth + 1])
        # All finders are asked, since an editable installation brings one of its own.
        finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, within) for finder in finders)), None)
        if spec is None or (depth + 1 < len(parts) and spec.submodule_search_locations is None):
            return None
        within = spec.submodule_search_locations
    return None if spec is None or spec.origin is None else Path(spec.origin)


@cache
def _without_files() -> tuple[dict[tuple[str, str], Plugin], tuple[Broken, ...]]:
    """The plugins that every recipe has, and what is wrong with the others."""
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
            clashes[key] = Broken(*key, item.where, f"two of this name: {both}; take one of them out")
        known.setdefault(key, item)
    return {key: plugin for key, plugin in known.items() if key not in clashes}, (*bad, *clashes.values())


@cache
def _with_files(files: tuple[Path, ...]) -> tuple[dict[tuple[str, str], Plugin], tuple[tuple[Plugin, Plugin], ...]]:
    """The plugins that a recipe with these files has, and what they put in whose place."""
    known = dict(_without_files()[0])
    swapped = []
    for path in files:
        if not path.is_file():
            raise PluginError(f"{short(path)}: no such plugin file")
        for plugin in _some_plugins(path, None, "file"):
            key = (plugin.kind, plugin.name)
            old = known.get(key)
            if plugin.replace and old is None:
                raise PluginError(f"{plugin.where}: replace=True, but there is no {plugin.kind} '{plugin.name}'")
            if old is not None and not plugin.replace:
                raise PluginError(
                    f"Two plugins are called {plugin.kind}/{plugin.name}: {old.where} and {plugin.where}. Call yours "
                    f'something else, or put it in place of the other: @register("{plugin.kind}", "{plugin.name}", '
                    "replace=True)"
                )
            if old is not None:
                swapped.append((plugin, old))
            known[key] = plugin
    return known, tuple(swapped)


def catalogue(files: tuple[Path, ...] = ()) -> dict[tuple[str, str], Plugin]:
    """Every plugin that can be read, by (kind, name): shipped, installed, and those of `files`.

    Raises:
        PluginError: one of `files` does not parse, has no plugin, or one whose name is taken.
    """
    return _with_files(files)[0]


def replaced(files: tuple[Path, ...]) -> tuple[tuple[Plugin, Plugin], ...]:
    """Which plugins of `files` stand in the place of which others: (new, old)."""
    return _with_files(files)[1]


def broken(files: tuple[Path, ...] = (), *, importing: bool = False) -> list[Broken]:
    """The plugins that cannot be had, with their reasons.

    Args:
        importing: Import all the others as well, to find those whose own imports fail. Slow.
    """
    found = list(_without_files()[1])
    for plugin in catalogue(files).values() if importing else ():
        try:
            _import(plugin)
        except (Exception, SystemExit) as error:
            found.append(Broken(plugin.kind, plugin.name, plugin.where, _why(error)))
    return found


def find(kind: str, name: str, files: tuple[Path, ...] = ()) -> Plugin:
    """The plugin of this kind and name, without importing it."""
    known = catalogue(files)
    if (kind, name) in known:
        return known[kind, name]
    for item in broken(files):
        if (item.kind, item.name) == (kind, name):
            raise unusable(item)
    names = sorted(n for k, n in known if k == kind)
    raise PluginError(f"Unknown {kind} '{name}'.{_nearest(name, names)} Known: {', '.join(names)}")


def unusable(item: Broken) -> PluginError:
    return PluginError(f"{item.kind} '{item.name}' ({item.where}) cannot be used: {item.reason}")


def _nearest(name: str, names: list[str]) -> str:
    """As `did_you_mean`, and `wavelet` finds `acme/wavelet`."""
    by_vendor = [known for known in names if known.split("/")[-1] == name]
    return did_you_mean(by_vendor[0] if by_vendor else name, names)


def load(plugin: Plugin) -> Any:
    """Imports a plugin's module and gives the class or function.

    Raises:
        PluginError: the import fails, for whatever reason: an outside module may raise anything.
    """
    try:
        return _import(plugin)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{plugin.kind} '{plugin.name}' ({plugin.where}) does not import: {_why(error)}") from error


def _import(plugin: Plugin) -> Any:
    module = _import_file(plugin.path) if plugin.module is None else importlib.import_module(plugin.module)
    return getattr(module, plugin.qualname)


def _why(error: BaseException) -> str:
    """An ImportError speaks for itself; other messages, if there is one at all, hardly do without their type."""
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def _import_file(path: Path) -> Any:
    name = f"sonoscribe_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]

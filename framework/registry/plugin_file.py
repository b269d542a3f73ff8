"""Plugin files as modules that every process of a run can import.

Objects of a plugin file, such as the views of a data set, cross to worker processes by pickle, which stores the name of
their module. Started by spawn or forkserver, a worker has none of the modules of its parent: the finder in
framework/__init__.py asks here, and the environment that it inherits maps module names to files.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from framework.registry.source import LARGEST_CODE
from framework.registry.trust import mark_neighbour, require_trusted
from framework.runtime.files import read_bounded

PREFIX = "sonoscribe_file_"
FILES = "SONOSCRIBE_PLUGIN_FILES"  # environment variable: JSON of {module name: path}
COPIES = "plugins"  # folder of the copies beside a saved recipe


class _SourceLoader(SourceFileLoader):
    """Runs the very bytes whose hash is checked, never a __pycache__ beside the file, which may have other code."""

    def get_code(self, fullname: str) -> Any:
        source = read_bounded(Path(self.path), LARGEST_CODE)
        require_trusted(Path(self.path), source)
        return self.source_to_code(source, self.path)


class _NeighbourLoader(_SourceLoader):
    """Runs a module beside a plugin file under the conditions of that file."""

    def get_code(self, fullname: str) -> Any:
        mark_neighbour(Path(self.path))
        return super().get_code(fullname)


def import_file(path: Path) -> ModuleType:
    """Imports a plugin file, once."""
    name = f"{PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        others = {other: file for other, file in _files().items() if other != name}
        os.environ[FILES] = json.dumps({**others, name: str(path)})
        for known, module in list(sys.modules.items()):  # each plugin file gets its own of neighbours of one name
            loader = getattr(module, "__loader__", None)
            if isinstance(loader, _NeighbourLoader) and (path.parent / f"{known}.py").is_file():
                del sys.modules[known]  # whoever has imported it keeps it
    return importlib.import_module(name)


def spec_of(name: str) -> ModuleSpec | None:
    """How to import the module of a plugin file, or a module beside one; None for any other name.

    It is asked last, so a module beside a plugin file hides nothing. The files that were imported last come first.
    """
    files = _files()
    if not name.startswith(PREFIX) and name.isidentifier():
        for plugin in reversed(files.values()):
            neighbour = Path(plugin).with_name(f"{name}.py")
            if neighbour.is_file():
                loader = _NeighbourLoader(name, str(neighbour))
                return importlib.util.spec_from_file_location(name, neighbour, loader=loader)
    file = files.get(name)
    return (
        None if file is None else importlib.util.spec_from_file_location(name, file, loader=_SourceLoader(name, file))
    )


def _files() -> dict[str, str]:
    return json.loads(os.environ.get(FILES, "{}"))


def copies_of(files: Sequence[Path]) -> tuple[list[str], dict[str, bytes]]:
    """Copies of plugin files for a saved recipe, with the modules beside them that they import.

    Each source folder has a folder of its own, so that a plugin file finds its neighbours and no others.

    Returns:
        the name of each file's copy, relative to the recipe; and the content of every copy by its name.
    """
    folders = list(dict.fromkeys(file.parent for file in files))
    home = {folder: COPIES if n == 1 else f"{COPIES}-{n}" for n, folder in enumerate(folders, 1)}
    names = {path: f"{home[path.parent]}/{path.name}" for file in files for path in (file, *_neighbours_of(file))}
    return [names[file] for file in files], {name: read_bounded(path, LARGEST_CODE) for path, name in names.items()}


def _neighbours_of(plugin: Path) -> list[Path]:
    """The modules beside a plugin file that it imports, also inside functions and by way of each other."""
    found = [plugin]
    for path in found:  # grows
        with contextlib.suppress(SyntaxError, ValueError, RecursionError):  # its import gives the error
            for node in ast.walk(ast.parse(read_bounded(path, LARGEST_CODE))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
                beside = [plugin.with_name(f"{name.partition('.')[0]}.py") for name in names]
                found += [file for file in beside if file.is_file() and file not in found]
    return found[1:]

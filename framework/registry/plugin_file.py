"""Plugin files as modules that every process of a run can import.

Objects of a plugin file, such as the views of a data set, cross to worker processes by pickle, which stores the name of
their module. Started by spawn or forkserver, a worker has none of the modules of its parent: the finder in
framework/__init__.py asks here, and the environment that it inherits maps module names to files.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from framework.registry.source import LARGEST_CODE
from framework.registry.trust import require_trusted
from framework.runtime.files import read_bounded

PREFIX = "sonoscribe_file_"
FILES = "SONOSCRIBE_PLUGIN_FILES"  # environment variable: JSON of {module name: path}


class _SourceLoader(SourceFileLoader):
    """Runs the very bytes whose hash is checked, never a __pycache__ beside the file, which may have other code."""

    def get_code(self, fullname: str) -> Any:
        source = read_bounded(Path(self.path), LARGEST_CODE)
        require_trusted(Path(self.path), source)
        return self.source_to_code(source, self.path)


def import_file(path: Path) -> ModuleType:
    """Imports a plugin file, once."""
    name = f"{PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        os.environ[FILES] = json.dumps({**_files(), name: str(path)})
    return importlib.import_module(name)


def spec_of(name: str) -> ModuleSpec | None:
    """How to import the module of a plugin file; None for any other name."""
    file = _files().get(name)
    return (
        None if file is None else importlib.util.spec_from_file_location(name, file, loader=_SourceLoader(name, file))
    )


def _files() -> dict[str, str]:
    return json.loads(os.environ.get(FILES, "{}"))

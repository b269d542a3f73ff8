"""Sonoscribe's core. Importing any part of it lets worker processes import the modules of plugin files."""

import importlib.abc
import sys
from typing import Any


class _PluginFileFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith("sonoscribe_file_"):
            return None
        from framework.registry.plugin_file import spec_of

        return spec_of(name)


sys.meta_path.append(_PluginFileFinder())

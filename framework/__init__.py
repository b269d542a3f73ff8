"""Sonoscribe's core. Importing any part of it lets worker processes import the modules of plugin files."""

import importlib.abc
import sys
from typing import Any


class _PluginFileFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.startswith("sonoscribe_file_"):
            from framework.registry.plugin_file import spec_of

            return spec_of(name)
        # Perhaps a module beside a plugin file. Before one is imported nothing is imported here, which would recurse.
        find: Any = getattr(sys.modules.get("framework.registry.plugin_file"), "spec_of", None)
        return None if path is not None or find is None else find(name)


sys.meta_path.append(_PluginFileFinder())

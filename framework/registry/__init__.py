"""Plugins: how they are found without being imported, and how their signatures become schemas of recipe keys."""

from framework.registry.plugins import (
    KINDS,
    NEEDS_TOPICS,
    PLUGINS,
    Broken,
    Kind,
    Plugin,
    PluginError,
    broken,
    catalogue,
    did_you_mean,
    find,
    load,
    register,
    replaced,
    short,
    unusable,
)

__all__ = [
    "KINDS",
    "NEEDS_TOPICS",
    "PLUGINS",
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

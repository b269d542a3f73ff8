"""Plugins: finds them without importing them, and reads their recipe keys from their signatures."""

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

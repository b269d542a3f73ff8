"""Plugins: finds them without importing them, and reads their recipe keys from their signatures."""

from framework.registry.plugins import PLUGINS, Broken, broken, catalogue, find, load, register, replaced, unusable
from framework.registry.source import KINDS, NEEDS_TOPICS, Kind, Plugin, PluginError, did_you_mean, short, unknown_name

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
    "unknown_name",
    "unusable",
]

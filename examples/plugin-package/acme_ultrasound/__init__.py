"""Plugins for Sonoscribe, found by the entry points in setup.cfg."""

"""Tests of KIND NAME: the contract of its kind, and below it your own tests."""

from __future__ import annotations

from pathlib import Path

from framework.registry import find
from framework.registry.signature import keys_of
from framework.testing import check, plugin

FILE = Path(__file__).with_name("OWN.py")


def test_a_plugin_meets_the_contract_of_its_kind() -> None:
    check("KIND", plugin(FILE, "KIND", "NAME"))


def test_every_key_is_documented() -> None:
    assert [key.name for key in keys_of(find("KIND", "NAME", (FILE,))) if not key.doc] == []

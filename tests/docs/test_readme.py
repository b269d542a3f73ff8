"""README shows the framework as it is."""

from __future__ import annotations

import ast
import configparser
import importlib
import re

import pytest
from harness import ROOT

from framework.run import model_card
from tests.test_layout import LEVELS

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", TEXT)


def test_the_tree_is_that_of_the_framework_level_by_level() -> None:
    (tree,) = (text for _, text in BLOCKS if text.startswith("framework/\n"))
    shown = [re.findall(r"(?m)^  (\w+)(?:/|\.py) +\S", level) for level in tree.split("\n\n")]
    assert [sorted(level) for level in shown] == [sorted(level) for level in reversed(LEVELS)]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/concepts.md", "docs/images/concepts.svg"])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"\b(?:framework|plugins|tests|docs|recipes)/(?:[a-z_0-9]+/)*(?:\w+\.\w+)?", text)
    assert len(named) > 4
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_shows_the_python_interface_as_it_is() -> None:
    (program,) = (text for language, text in BLOCKS if language == "python")
    door = importlib.import_module("sonoscribe")
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sonoscribe":
            assert hasattr(door, node.attr), node.attr


def test_the_paper_is_cited_as_on_the_card_of_a_model_and_the_software_with_its_version() -> None:
    paper, software = (text for _, text in BLOCKS if text.startswith("@"))
    card = model_card.TEMPLATE.replace("{{", "{").replace("}}", "}")
    assert paper in card
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"version = {{{setup['metadata']['version']}}}" in software

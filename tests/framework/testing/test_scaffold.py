"""`new KIND NAME` writes a plugin that works, and its test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, problem

from framework.recipe.describe import snippet
from framework.registry import KINDS, PluginError, find, load
from framework.registry.signature import injected_params, keys_of
from framework.testing.scaffold import TEMPLATES, TEST, write_plugin

# The second of each names something that its template uses too.
NAMES = {"encoder": "features", "decoder": "tensor", "optimizer": "groups", "schedule": "step", "loss": "batch"}


def test_every_kind_has_a_template() -> None:
    assert {path.name for path in TEMPLATES.glob("*.py")} == {TEST, *(f"{kind}.py" for kind in KINDS)}


def test_the_test_template_of_every_kind_passes(tmp_path: Path) -> None:
    """From another folder, under plain names, a vendor's, and names that the template uses for something else."""
    tests = []
    for kind in KINDS:
        tests.append(write_plugin(kind, f"my_own_{kind}", tmp_path / kind)[1])
        tests.append(write_plugin(kind, f"acme/{kind}_of_acme", tmp_path / kind)[1])
        if kind in NAMES:
            tests.append(write_plugin(kind, f"acme/{NAMES[kind]}", tmp_path / kind)[1])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.defpath, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{2 * len(tests)} passed" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_or_grid_file_can_name_a_new_plugin(kind: str, tmp_path: Path) -> None:
    path, _ = write_plugin(kind, f"my_own_{kind}", tmp_path)
    plugin = find(kind, f"my_own_{kind}", (path,))
    keys = keys_of(plugin)
    assert 1 <= len(keys) <= 3 and all(key.doc and not key.required for key in keys)
    assert set(injected_params(plugin)) <= KINDS[kind].injected_params
    assert plugin.name in snippet(plugin) and all(key.name in snippet(plugin) for key in keys)
    assert plugin.summary and "my_" + kind not in path.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_the_template_gives_the_template_unchanged(kind: str, tmp_path: Path) -> None:
    path, _ = write_plugin(kind, f"my_{kind}", tmp_path)
    assert path.read_text() == (TEMPLATES / f"{kind}.py").read_text()


def test_a_shipped_plugin_is_written_beside_the_shipped_plugins(tmp_path: Path) -> None:
    path, test = write_plugin("loss", "of_length", tmp_path, shipped=True)
    assert path == tmp_path / "plugins" / "loss" / "of_length.py"
    assert test == tmp_path / "tests" / "plugins" / "loss" / "test_of_length.py"
    assert 'find("loss", "of_length")' in test.read_text()
    assert 'parents[3] / "plugins" / "loss" / "of_length.py"' in test.read_text()
    assert load(find("loss", "of_length", (path,))).needs == ("logits",)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for file in ("mine.py", "test_mine.py"):
        folder = tmp_path / file
        folder.mkdir()
        (folder / file).write_text("mine")
        with problem("file-exists", file, PluginError):
            write_plugin("loss", "mine", folder)
        assert [path.name for path in folder.iterdir()] == [file] and (folder / file).read_text() == "mine"


@pytest.mark.parametrize(
    "kind, name, code",
    [
        ("encodr", "mine", "unknown-name"),
        ("encoder", "My-Eyes", "wrong-format"),
        ("encoder", "2d", "wrong-format"),
        ("encoder", "class", "wrong-format"),
        ("encoder", "a/b/c", "wrong-format"),
        ("encoder", "../mine", "wrong-format"),
        ("encoder", "mine\n", "wrong-format"),
        ("encoder", "resnet", "duplicate-name"),
    ],
)
def test_an_invalid_kind_or_name_is_refused(kind: str, name: str, code: str, tmp_path: Path) -> None:
    with problem(code, kind=PluginError):
        write_plugin(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_shipped_plugin_has_no_vendor(tmp_path: Path) -> None:
    with problem("wrong-format", kind=PluginError):
        write_plugin("loss", "acme/mine", tmp_path, shipped=True)


def test_a_plugin_with_a_vendor_may_have_a_shipped_name(tmp_path: Path) -> None:
    path, _ = write_plugin("encoder", "acme/resnet", tmp_path)
    assert path.name == "resnet.py" and find("encoder", "acme/resnet", (path,)).qualname == "Resnet"

"""The registry: finds plugins in three places without importing them, and reports the reason if one is unusable."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
from harness import TOYS, problem

from framework.registry import Plugin, PluginError, broken, catalogue, find, load, register, replaced, trust
from framework.registry import plugins as registry

ENCODER = '@register("encoder", "{name}")\nclass Eyes:\n    """Looks."""\n'


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts an outside package on the path: modules by name, and entry points."""

    def put(modules, points, name="acme-eyes"):
        site = tmp_path / name
        for module, text in modules.items():
            path = site / Path(*module.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        info = site / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"[sonoscribe.{kind}]\n{point}\n" for kind, point in points]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        _forget()

    yield put
    monkeypatch.undo()
    _forget()


def _forget():
    registry._without_files.cache_clear()
    registry._with_files.cache_clear()


def test_a_plugin_is_known_without_being_imported():
    found = find("dataset", "toy_exams", (TOYS,))
    assert (found.summary, found.origin) == ("Exams that are not there.", "file")
    assert not any("toys" in name for name in sys.modules)


def test_an_installed_plugin_is_known_without_importing_its_module_or_the_packages_around_it(install):
    bomb = "raise RuntimeError('imported')\n"
    install(
        {"acme.__init__": bomb, "acme.deep.__init__": bomb, "acme.deep.eyes": bomb + ENCODER.format(name="acme/eyes")},
        [("encoder", "acme/eyes = acme.deep.eyes")],
    )
    found = find("encoder", "acme/eyes")
    assert (found.module, found.origin, found.summary) == ("acme.deep.eyes", "acme-eyes 1.2", "Looks.")
    assert "acme" not in sys.modules
    with problem("import-failed", "eyes.py:3", PluginError):
        load(found)


def test_a_name_without_its_vendor_finds_the_plugin(install):
    install({"acme_eyes": ENCODER.format(name="acme/eyes")}, [("encoder", "acme/eyes = acme_eyes")])
    with problem("unknown-name") as found:
        find("encoder", "eyes")
    assert found[0].hint.startswith("Did you mean 'acme/eyes'? Known: acme/eyes, backbone, ")


@pytest.mark.parametrize(
    ("modules", "point", "reason"),
    [
        ({}, "acme/eyes = nowhere.at_all", "there is no module nowhere.at_all"),
        ({}, "acme/eyes = ", "there is no module"),
        ({}, "acme/eyes = no module!", "there is no module no module!"),
        ({}, "acme/eyes = .m", ".m"),
        ({"m1": "x = ("}, "acme/eyes = m1", "m1.py:1:5: not Python"),
        ({"m2": "x = 1"}, "acme/eyes = m2", "m2.py: unknown encoder 'acme/eyes'. Known: none"),
        ({"m3": ENCODER.format(name="acme/nose")}, "acme/eyes = m3", "Known: acme/nose"),
        ({"m4": ENCODER.format(name="eyes")}, "eyes = m4", "found the entry point 'eyes', expected vendor/name"),
        (
            {"m5": '@register("encoder", "acme/eyes", replace=True)\nclass Eyes: ...\n'},
            "acme/eyes = m5",
            "m5.py:2: found replace=True",
        ),
    ],
)
def test_an_unusable_package_is_listed_with_its_reason_and_raises_only_if_used(install, modules, point, reason):
    install(modules, [("encoder", point)])
    assert ("encoder", "resnet") in catalogue() and find("encoder", "resnet")
    (item,) = broken()
    assert reason in item.reason and item.where == f"acme-eyes 1.2: {point}"
    with problem("invalid-plugin", item.where):
        find("encoder", point.split(" =")[0])


def test_a_package_with_unreadable_entry_points_is_listed_and_breaks_no_other(install, tmp_path):
    install({}, [("encoder", "no equals sign")])
    (item,) = broken()
    assert item.reason.startswith("the entry points of a package cannot be read: ")
    assert item.where == str(tmp_path / "acme-eyes") and find("encoder", "resnet")


def test_an_entry_point_of_an_unknown_kind_is_listed_with_the_nearest_kind(install):
    install({"acme_eyes": ENCODER.format(name="acme/eyes")}, [("encoders", "acme/eyes = acme_eyes")])
    (item,) = broken()
    assert item.reason.startswith("sonoscribe.encoders: unknown kind 'encoders'. Did you mean 'encoder'?")


def test_an_editable_installation_is_found_through_its_own_finder(install, tmp_path, monkeypatch):
    text = "raise RuntimeError('imported')\n"
    (tmp_path / "source" / "deep").mkdir(parents=True)
    for path in ("__init__.py", "deep/__init__.py"):
        (tmp_path / "source" / path).write_text(text)
    (tmp_path / "elsewhere.py").write_text(text + ENCODER.format(name="acme/eyes"))
    files = {
        "acme_edited": tmp_path / "source" / "__init__.py",
        "acme_edited.deep": tmp_path / "source" / "deep" / "__init__.py",
        "acme_edited.deep.eyes": tmp_path / "elsewhere.py",
    }

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return importlib.util.spec_from_file_location(name, files[name]) if name in files else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    install({}, [("encoder", "acme/eyes = acme_edited.deep.eyes")])
    assert find("encoder", "acme/eyes").path == tmp_path / "elsewhere.py"
    assert "acme_edited" not in sys.modules


def test_a_package_that_is_on_the_path_twice_counts_once(install, tmp_path):
    install({"acme_eyes": ENCODER.format(name="acme/eyes")}, [("encoder", "acme/eyes = acme_eyes")])
    sys.path.append(str(tmp_path / "acme-eyes"))
    _forget()
    assert find("encoder", "acme/eyes") and broken() == []


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("raise RuntimeError", "RuntimeError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("del Eyes", "AttributeError: module 'acme_ends' has no attribute 'Eyes'"),
    ],
)
def test_any_error_of_a_module_is_reported(install, monkeypatch, end, reason):
    install({"acme_ends": f"def register(*_):\n    return lambda c: c\n{ENCODER.format(name='acme/eyes')}{end}\n"}, [])
    monkeypatch.delitem(sys.modules, "acme_ends", raising=False)
    path = Path(sys.path[0]) / "acme_ends.py"
    plugin = Plugin("encoder", "acme/eyes", path, 4, "Eyes", None, "acme_ends")
    with problem("import-failed", "acme_ends.py:4") as found:
        load(plugin)
    assert found[0].found.endswith(f"does not import: {reason}")


def test_two_packages_with_one_name_are_both_reported(install):
    for package in ("one", "two"):
        module = f"acme_{package}"
        install({module: ENCODER.format(name="acme/eyes")}, [("encoder", f"acme/eyes = {module}")], name=package)
    assert ("encoder", "acme/eyes") not in catalogue() and find("encoder", "resnet")
    with problem("invalid-plugin") as found:
        find("encoder", "acme/eyes")
    assert "acme_one.py:2 (one 1.2)" in found[0].found and "acme_two.py:2 (two 1.2)" in found[0].found


def test_an_unreadable_shipped_file_breaks_no_other(tmp_path, monkeypatch):
    swap = '@register("encoder", "swap", replace=True)\nclass Swap: ...'
    texts = {"bad": "x = (", "good": ENCODER.format(name="good"), "none": "x = 1", "swap": swap}
    (tmp_path / "encoder").mkdir()
    for name, text in texts.items():
        (tmp_path / "encoder" / f"{name}.py").write_text(text)
    monkeypatch.setattr(registry, "PLUGINS", tmp_path)
    _forget()
    try:
        assert find("encoder", "good").name == "good"
        assert [(item.kind, item.name) for item in broken()] == [("encoder", name) for name in ("bad", "none", "swap")]
        reasons = [item.reason for item in broken()]
        assert "none.py: registers no plugin" in reasons[1] and "swap.py:2: found replace=True" in reasons[2]
        with problem("invalid-plugin", "bad.py"):
            find("encoder", "bad")
    finally:
        monkeypatch.undo()
        _forget()


def test_broken_lists_failing_imports_if_it_may_import(monkeypatch):
    assert broken((TOYS,)) == []
    few = {key: plugin for key, plugin in catalogue((TOYS,)).items() if plugin.origin == "file" or key[0] == "schedule"}
    monkeypatch.setattr(registry, "catalogue", lambda files: few)
    reasons = {(item.kind, item.name): item.reason for item in broken((TOYS,), importing=True)}
    assert reasons["dataset", "toy_exams"] == "No module named 'a_module_that_is_not_there'"
    assert ("schedule", "cosine") in few and ("schedule", "cosine") not in reasons


def test_a_failed_import_names_the_plugin_and_the_reason():
    with problem("import-failed", "toys.py:") as found:
        load(find("dataset", "toy_exams", (TOYS,)))
    assert found[0].found == "dataset 'toy_exams' does not import: No module named 'a_module_that_is_not_there'"


def test_an_unknown_name_gives_the_nearest_and_all_known_names():
    with problem("unknown-name") as found:
        find("encoder", "toy_eye", (TOYS,))
    assert found[0].hint.startswith("Did you mean 'toy_eyes'? Known: ") and "toy_eyes" in found[0].hint


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [("encodr", "x", "unknown-name"), ("encoder", "My-Eyes", "wrong-format"), ("encoder", "a/b/c", "wrong-format")],
)
def test_register_refuses_unknown_kinds_and_invalid_names(kind, name, code):
    with problem(code, kind=PluginError):
        register(kind, name)


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("x = (", "invalid-plugin", "bad.py:1:5"),
        ("x = '\0'", "invalid-plugin", "bad.py"),
        ("x = 1", "invalid-plugin", "bad.py"),
        ("@register('encodr', 'a')\nclass A: ...", "unknown-name", "bad.py:1"),
        ("@register('encoder', NAME)\nclass A: ...", "invalid-plugin", "bad.py:1"),
        ("@register('encoder', 'a', relpace=True)\nclass A: ...", "invalid-plugin", "bad.py:1"),
        ("@register('encoder', 'a', replace=YES)\nclass A: ...", "invalid-plugin", "bad.py:1"),
        ("@register('encoder', 'A b')\nclass A: ...", "wrong-format", "bad.py:1"),
        (
            "@register('encoder', 'a')\nclass A: ...\n@register('encoder', 'a')\nclass B: ...",
            "duplicate-name",
            "bad.py:4",
        ),
        ("@register('encoder', 'resnet')\nclass A: ...", "duplicate-name", "bad.py:2"),
        ("@register('encoder', 'resnte', replace=True)\nclass A: ...", "unknown-name", "bad.py:2"),
    ],
)
def test_an_unusable_plugin_file_is_refused(tmp_path, monkeypatch, text, code, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(text)
    with problem(code, place, PluginError):
        catalogue((tmp_path / "bad.py",))


@pytest.mark.parametrize("shadow", ["plugins/__init__.py", "plugins.py"])
def test_a_package_of_the_user_that_shadows_ours_is_named(tmp_path, monkeypatch, shadow):
    (tmp_path / shadow).parent.mkdir(exist_ok=True)
    (tmp_path / shadow).write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "plugins"]:
        monkeypatch.delitem(sys.modules, name)
    with problem("shadowed-package") as found:
        load(find("schedule", "cosine"))
    assert str(tmp_path / shadow) in found[0].found


def test_a_file_may_replace_a_shipped_plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('@register("encoder", "resnet", replace=True)\nclass Mine:\n    """Mine."""\n')
    assert find("encoder", "resnet", (path,)).path == path
    ((new, old),) = replaced((path,))
    assert (new.origin, old.origin) == ("file", "shipped")
    assert find("encoder", "resnet").origin == "shipped", "without the file nothing changes"


def test_a_recipe_reports_which_plugins_its_files_replace(tmp_path, monkeypatch):
    from framework.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    text = (registry.PLUGINS / "loss" / "next_token.py").read_text()
    Path("mine.py").write_text(text.replace('"next_token")', '"next_token", replace=True)'))
    (notice,) = load_recipe("smoke", ["plugins=mine.py"]).notices
    assert notice.startswith("mine.py:") and "loss/next_token replaces the shipped one (" in notice


def test_a_plugin_file_imports_its_neighbours_and_each_folder_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_helpers_of_tests.py").write_text(f"VALUE = {value}\n")
        (tmp_path / folder / "mine.py").write_text(
            "from framework.registry import register\nfrom my_helpers_of_tests import VALUE\n\n\n"
            '@register("schedule", "mine")\ndef mine(*, steps: int):\n    return lambda step: float(VALUE)\n'
        )
    for folder, value in (("a", 1), ("b", 2), ("a", 1)):
        file = tmp_path / folder / "mine.py"
        assert load(find("schedule", "mine", (file,)))(steps=1)(0) == value


def test_a_neighbour_that_comes_with_a_saved_model_needs_trust(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "helpers_of_a_model.py").write_text("VALUE = 4711\n")
    (tmp_path / "theirs.py").write_text(
        "from framework.registry import register\nfrom helpers_of_a_model import VALUE\n\n\n"
        '@register("schedule", "theirs")\ndef theirs(*, steps: int):\n    return lambda step: float(VALUE)\n'
    )
    file = tmp_path / "theirs.py"
    trust.mark_as_saved([file])
    trust.trust([file])
    with problem("untrusted-code", "helpers_of_a_model.py"):
        load(find("schedule", "theirs", (file,)))

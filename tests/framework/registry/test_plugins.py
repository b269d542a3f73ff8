"""The registry: three ways in, names that are read and not imported, and what is said of plugins that cannot be had."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
from harness import TOYS

from framework.registry import Plugin, PluginError, broken, catalogue, find, load, register, replaced
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
    with pytest.raises(
        PluginError, match=r"encoder 'acme/eyes' \(.*eyes.py:3\) does not import: RuntimeError: imported"
    ):
        load(found)


def test_a_name_without_its_vendor_finds_the_one_with_it(install):
    install({"acme_eyes": ENCODER.format(name="acme/eyes")}, [("encoder", "acme/eyes = acme_eyes")])
    with pytest.raises(
        PluginError, match=r"^Unknown encoder 'eyes'\. Did you mean 'acme/eyes'\? Known: acme/eyes, backbone, resnet"
    ):
        find("encoder", "eyes")


@pytest.mark.parametrize(
    ("modules", "point", "reason"),
    [
        ({}, "acme/eyes = nowhere.at_all", "there is no module nowhere.at_all"),
        ({"m1": "x = ("}, "acme/eyes = m1", "m1.py:1:5: not Python: '(' was never closed"),
        ({"m2": "x = 1"}, "acme/eyes = m2", "m2.py registers no encoder 'acme/eyes'; it registers none"),
        (
            {"m3": ENCODER.format(name="acme/nose")},
            "acme/eyes = m3",
            "m3.py registers no encoder 'acme/eyes'; it registers acme/nose",
        ),
        (
            {"m4": ENCODER.format(name="eyes")},
            "eyes = m4",
            "an installed plugin is called vendor/name, in its entry point and in @register; found 'eyes'",
        ),
        (
            {"m5": '@register("encoder", "acme/eyes", replace=True)\nclass Eyes: ...\n'},
            "acme/eyes = m5",
            "m5.py:2: replace=True is for files that a recipe names",
        ),
    ],
)
def test_a_bad_package_is_listed_with_its_reason_and_raises_only_when_named(install, modules, point, reason):
    install(modules, [("encoder", point)])
    assert ("encoder", "resnet") in catalogue() and find("encoder", "resnet")
    (item,) = broken()
    assert item.reason.endswith(reason) and item.where == f"acme-eyes 1.2: {point}"
    with pytest.raises(PluginError) as error:
        find("encoder", point.split(" =")[0])
    assert "cannot be used: " in str(error.value) and str(error.value).endswith(reason)


@pytest.mark.parametrize(
    ("value", "reason"), [("", "there is no module "), ("no module!", "there is no module no module!"), (".m", ".m")]
)
def test_an_entry_point_that_names_no_module_spoils_no_other(install, value, reason):
    install({}, [("encoder", f"acme/eyes = {value}")])
    (item,) = broken()
    assert item.reason.endswith(reason) and find("encoder", "resnet")


def test_a_package_whose_entry_points_cannot_be_read_is_listed_and_spoils_no_other(install, tmp_path):
    install({}, [("encoder", "no equals sign")])
    (item,) = broken()
    assert item.reason.startswith("the entry points of a package here cannot be read: ")
    assert item.where == str(tmp_path / "acme-eyes") and find("encoder", "resnet")


def test_a_group_of_no_kind_is_listed_with_the_nearest_kind(install):
    install({"acme_eyes": ENCODER.format(name="acme/eyes")}, [("encoders", "acme/eyes = acme_eyes")])
    (item,) = broken()
    assert item.reason.startswith(
        "the entry point stands in sonoscribe.encoders. Unknown kind 'encoders'. Did you mean 'encoder'? Known: "
    )


def test_a_package_that_is_installed_to_be_edited_is_found_through_its_own_finder(install, tmp_path, monkeypatch):
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


def test_a_package_that_stands_twice_on_the_path_counts_once(install, tmp_path):
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
def test_whatever_a_module_raises_is_a_reason(install, monkeypatch, end, reason):
    install({"acme_ends": f"def register(*_):\n    return lambda c: c\n{ENCODER.format(name='acme/eyes')}{end}\n"}, [])
    monkeypatch.delitem(sys.modules, "acme_ends", raising=False)
    path = Path(sys.path[0]) / "acme_ends.py"
    plugin = Plugin("encoder", "acme/eyes", path, 4, "Eyes", None, "acme_ends")
    with pytest.raises(PluginError) as error:
        load(plugin)
    assert str(error.value).endswith(f"does not import: {reason}")


def test_two_packages_with_one_name_are_told_with_both_places_when_it_is_named(install):
    for package in ("one", "two"):
        module = f"acme_{package}"
        install({module: ENCODER.format(name="acme/eyes")}, [("encoder", f"acme/eyes = {module}")], name=package)
    assert ("encoder", "acme/eyes") not in catalogue() and find("encoder", "resnet")
    with pytest.raises(
        PluginError, match=r"two of this name: .*acme_\w+.py:2 \(\w+ 1.2\) and .*acme_\w+.py:2 \(\w+ 1.2\);"
    ):
        find("encoder", "acme/eyes")


def test_a_shipped_file_that_cannot_be_read_spoils_no_other(tmp_path, monkeypatch):
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
        assert reasons[1].endswith('none.py: registers no plugin; put @register("kind", "name") over a class')
        assert reasons[2].endswith("swap.py:2: replace=True is for files that a recipe names")
        with pytest.raises(PluginError, match=r"encoder 'bad' \(.*bad.py\) cannot be used: .*bad.py:1:5: not Python"):
            find("encoder", "bad")
    finally:
        monkeypatch.undo()
        _forget()


def test_broken_tells_of_failing_imports_when_it_may_import():
    told = {(item.kind, item.name): item.reason for item in broken((TOYS,), importing=True)}
    assert told["dataset", "toy_exams"] == "No module named 'a_module_that_is_not_there'"
    assert ("encoder", "resnet") not in told and ("loss", "topic") not in told
    assert broken((TOYS,)) == []


def test_a_plugin_that_does_not_import_names_itself_and_the_reason():
    with pytest.raises(
        PluginError, match=r"dataset 'toy_exams' \(.*toys.py:\d+\) does not import: No module named 'a_m"
    ):
        load(find("dataset", "toy_exams", (TOYS,)))


def test_unknown_name_says_what_is_known():
    with pytest.raises(PluginError, match=r"Unknown encoder 'toy_eye'\. Did you mean 'toy_eyes'\? Known: .*toy_eyes"):
        find("encoder", "toy_eye", (TOYS,))


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("encodr", "x", "Unknown kind 'encodr'. Did you mean 'encoder'? Known: dataset, "),
        (
            "encoder",
            "My-Eyes",
            "'My-Eyes' cannot be a plugin's name: expected small letters, digits and _, or vendor/name",
        ),
        ("encoder", "a/b/c", "'a/b/c' cannot be a plugin's name"),
    ],
)
def test_a_mark_that_cannot_be_is_refused(kind, name, said):
    with pytest.raises(PluginError) as error:
        register(kind, name)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "bad.py:1:5: not Python: '(' was never closed"),
        ("x = '\0'", "bad.py: "),
        ("x = 1", "bad.py: registers no plugin"),
        ("@register('encodr', 'a')\nclass A: ...", "bad.py:1: Unknown kind 'encodr'. Did you mean 'encoder'?"),
        ("@register('encoder', NAME)\nclass A: ...", "bad.py:1: write @register"),
        ("@register('encoder', 'a', relpace=True)\nclass A: ...", "bad.py:1: write @register"),
        ("@register('encoder', 'a', replace=YES)\nclass A: ...", "bad.py:1: replace is True or False, written out"),
        ("@register('encoder', 'A b')\nclass A: ...", "bad.py:1: 'A b' cannot be a plugin's name"),
        (
            "@register('encoder', 'a')\nclass A: ...\n@register('encoder', 'a')\nclass B: ...",
            "Two plugins are called encoder/a: bad.py:2 and bad.py:4. Call yours something else, or put it in place",
        ),
        ("@register('encoder', 'resnet')\nclass A: ...", "Two plugins are called encoder/resnet: "),
        (
            "@register('encoder', 'resnte', replace=True)\nclass A: ...",
            "bad.py:2: replace=True, but there is no encoder 'resnte'",
        ),
    ],
)
def test_a_plugin_file_that_cannot_be_used_says_why(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(PluginError) as error:
        catalogue((tmp_path / "bad.py",))
    assert str(error.value).startswith(said)


def test_a_file_may_take_the_place_of_a_shipped_plugin_where_it_says_so(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('@register("encoder", "resnet", replace=True)\nclass Mine:\n    """Mine."""\n')
    assert find("encoder", "resnet", (path,)).path == path
    ((new, old),) = replaced((path,))
    assert (new.origin, old.origin) == ("file", "shipped")
    assert find("encoder", "resnet").origin == "shipped", "without the file all is as before"


def test_a_recipe_says_what_its_files_put_in_whose_place(tmp_path, monkeypatch):
    from framework.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    text = (registry.PLUGINS / "loss" / "next_token.py").read_text()
    Path("mine.py").write_text(text.replace('"next_token")', '"next_token", replace=True)'))
    (notice,) = load_recipe("smoke", ["plugins=mine.py"]).notices
    assert notice.startswith("mine.py:18: loss/next_token in place of the shipped one (")

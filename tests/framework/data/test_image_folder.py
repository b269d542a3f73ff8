"""Names of images, as other systems write them, and what an error says of a name without a file."""

import unicodedata
from pathlib import Path

import pytest
from harness import problem

from framework.data.image_folder import ImageFolder


@pytest.fixture
def folder(tmp_path):
    for name in ("images/a.png", "images/17/b_2.png", "images/17/b_10.png", "images/17/notes.txt", "other.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return ImageFolder(tmp_path / "images")


@pytest.mark.parametrize("name", ["17/b_2.png", "17\\b_2.png", ".\\17\\b_2.png"])
def test_both_separators_are_read(folder, name):
    assert Path(folder.view(name).path).samefile(folder.root / "17" / "b_2.png")


def test_a_pattern_finds_images_alone_in_the_order_of_their_numbers(folder):
    assert [view.name for view in folder.views("17/*")] == ["17/b_2.png", "17/b_10.png"]
    assert [view.name for view in folder.views("17\\b_?.png")] == ["17/b_2.png"]


def test_a_name_with_the_signs_of_a_pattern_is_a_name_if_it_exists(folder):
    (folder.root / "scan[1].png").touch()
    assert [view.name for view in folder.views("scan[1].png")] == ["scan[1].png"]


@pytest.mark.parametrize("name", ["18/*.png", "../*.png", "/etc/*", "C:\\*.png"])
def test_a_pattern_without_images_or_outside_of_the_folder_is_refused(folder, name):
    with problem("no-such-file"):
        folder.views(name)


def test_two_stars_beside_letters_are_no_pattern(folder):
    with problem("wrong-format"):
        folder.views("a**b/[")


@pytest.mark.parametrize(
    "name, hint",
    [
        ("images/a.png", "a.png is there"),
        ("D:\\Export\\images\\17\\b_2.png", "17/b_2.png is there"),
        ("A.PNG", "Did you mean 'a.png'?"),
        ("b_2.png", "data.dataset.images"),
        ("17/b_3.png", "Did you mean 'b_2.png'?"),
        ("../other.png", ""),
        ("a" * 5000, ""),
        ("a\0", ""),
        ("", ""),
    ],
)
def test_a_name_without_a_file_gets_the_likely_reason(folder, name, hint):
    with problem("no-such-file") as problems:
        folder.view(name)
    assert hint in problems[0].hint and bool(hint) == bool(problems[0].hint)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_another_unicode_form_is_named(folder, form):
    (folder.root / unicodedata.normalize(form, "Müller.png")).touch()
    with problem("no-such-file") as problems:
        folder.view(unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "Müller.png"))
    assert f"Unicode form {form}" in problems[0].hint

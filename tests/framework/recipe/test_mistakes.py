"""Every kind of mistake in a recipe is refused with its code and place."""

from pathlib import Path

import pytest
import yaml
from good_recipe import GOOD, TOYS
from harness import problem

from framework.recipe import RecipeError, load_recipe, load_saved_recipe, save
from framework.recipe.explain import explain
from framework.recipe.renamed import FORMAT, RENAMED

TABLE = yaml.safe_load((Path(__file__).parent / "recipe_mistakes.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Path of a recipe without mistakes."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(GOOD, encoding="utf-8")
    return Path("r.yaml")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["case"])
def test_a_mistake_is_refused_with_its_code_and_place(recipe, row):
    if "file" in row:
        recipe.write_bytes((row["file"] * row.get("times", 1)).encode("latin-1"))
    else:
        text = GOOD
        for old, new in [(row.get("replace", ""), row.get("by", "")), row.get("and", ("", ""))]:
            old = old.replace("{toys}", str(TOYS))
            assert old in text
            text = text.replace(old, new, 1)
        recipe.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, row.get("overrides", []))
    assert [f"{found.code} {found.place}" for found in error.value.problems] == row["problems"]
    assert str(error.value) == row.get("message", str(error.value))


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_is_refused_with_its_new_name(recipe, old, new):
    with problem("renamed-key", old, RecipeError) as found:
        load_recipe(recipe, [f"{old}=1"])
    assert new in found[0].hint


def test_an_old_key_is_refused_wherever_it_is_written(recipe):
    for override in ("~train.clip", "resume_ignore=[train.clip]", "train={clip: 1}"):
        with problem("renamed-key", override, RecipeError):
            load_recipe(recipe, [override])
    with problem("renamed-key", "r.yaml", RecipeError):
        explain(load_recipe(recipe), "train.clip")
    recipe.write_text(f"{GOOD}train: {{clip: 1}}\n", encoding="utf-8")
    with problem("renamed-key", "r.yaml:11:9: train.clip", RecipeError):
        load_recipe(recipe)


def test_a_saved_recipe_of_another_format_is_refused(recipe, tmp_path):
    text = save(load_recipe(recipe))
    saved = tmp_path / "saved.yaml"
    saved.write_text(text)
    assert load_saved_recipe(saved) == load_recipe(saved) == load_recipe(recipe)
    saved.write_text(text.replace(f"format: {FORMAT}\n", ""))
    with problem("wrong-format", "saved.yaml: format", RecipeError) as found:
        load_saved_recipe(saved)
    assert "0.5" in found[0].found
    saved.write_text(text.replace(f"format: {FORMAT}\n", "format: 99\n"))
    with problem("wrong-format", "saved.yaml:1:1: format", RecipeError) as found:
        load_recipe(saved)
    assert "later version" in found[0].found

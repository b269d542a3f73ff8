"""Every kind of mistake in a recipe: what is said about it, word for word."""

from pathlib import Path

import pytest
import yaml
from good_recipe import GOOD, TOYS

from framework.recipe import RecipeError, load_recipe
from framework.recipe.source import shipped_recipes
from framework.registry import KINDS, catalogue

TABLE = yaml.safe_load((Path(__file__).parent / "recipe_mistakes.yaml").read_text(encoding="utf-8"))


def filled_in(text):
    known = {kind: sorted(name for k, name in catalogue((TOYS,)) if k == kind) for kind in KINDS}
    known |= {"recipes": list(shipped_recipes()), "toys": [str(TOYS)]}
    known["data"] = [name.removeprefix("data/") for name in known["recipes"] if name.startswith("data/")]
    for word, names in known.items():
        text = text.replace(f"{{{word}}}", ", ".join(names))
    return text


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["case"])
def test_a_mistake_is_told_word_for_word(tmp_path, monkeypatch, row):
    monkeypatch.chdir(tmp_path)
    if "file" in row:
        Path("r.yaml").write_bytes((row["file"] * row.get("times", 1)).encode("latin-1"))
    else:
        text = GOOD
        for old, new in [(row.get("replace", ""), row.get("by", "")), row.get("and", ("", ""))]:
            old = filled_in(old)
            assert old in text
            text = text.replace(old, new, 1)
        Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe("r.yaml", row.get("overrides", []))
    assert list(error.value.lines) == [filled_in(line) for line in row["says"]]


def test_there_are_sixty_kinds_of_mistakes_and_each_stands_once():
    assert len({row["case"] for row in TABLE}) == len(TABLE) >= 60

"""The registry and the signatures it hands on: read as text, with errors that name a line."""

import sys
from pathlib import Path

import pytest

from framework.registry import KINDS, Plugin, PluginError, catalogue, find, load, register
from framework.signature import REQUIRED, argument_docs, class_texts, given, keys_of, model_of

TOYS = Path(__file__).parent / "toys.py"


def plugin(tmp_path, signature, kind="encoder", body=""):
    path = tmp_path / "mine.py"
    path.write_text(f'@register("{kind}", "mine")\nclass Mine:\n    def __init__(self, {signature}): ...\n{body}')
    return find(kind, "mine", (path,))


def test_a_plugin_is_known_without_being_imported():
    found = find("dataset", "toy_exams", (TOYS,))
    assert isinstance(found, Plugin) and found.summary == "Exams that are not there."
    assert [(key.name, key.default) for key in keys_of(found)] == [("organ", "breast"), ("exams", 8)]
    assert keys_of(found)[1].doc == "how many, in all splits."
    assert not any("toys" in name for name in sys.modules)


def test_a_plugin_that_does_not_import_names_itself_and_the_reason():
    with pytest.raises(
        PluginError, match=r"dataset 'toy_exams' \(.*toys.py:\d+\) does not import: No module named 'a_m"
    ):
        load(find("dataset", "toy_exams", (TOYS,)))


def test_unknown_name_says_what_is_known():
    with pytest.raises(PluginError, match=r"Unknown encoder 'toy_eye'\. Did you mean 'toy_eyes'\? Known: .*toy_eyes"):
        find("encoder", "toy_eye", (TOYS,))


def test_unknown_kind_says_what_is_known():
    with pytest.raises(PluginError, match=r"Unknown kind 'encodr'\. Did you mean 'encoder'\? Known: dataset, "):
        register("encodr", "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "bad.py: not a Python file that can be read"),
        ("x = 1", "bad.py: registers no plugin"),
        ("@register('encodr', 'a')\nclass A: ...", "bad.py:2: unknown kind 'encodr'. Did you mean 'encoder'?"),
        ("@register('encoder', NAME)\nclass A: ...", "bad.py:2: write @register"),
        (
            "@register('encoder', 'a')\nclass A: ...\n@register('encoder', 'a')\nclass B: ...",
            "Two encoders are named 'a'",
        ),
    ],
)
def test_a_plugin_file_that_cannot_be_read_says_why(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(PluginError) as error:
        catalogue((tmp_path / "bad.py",))
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        ("*, a", "argument 'a' of encoder 'mine' has no annotation, which a recipe key needs, such as a: int"),
        ("*, a: Path", "found the annotation Path; known: int, "),
        ("*, a: list[Path]", "found the annotation list[Path]; known: int, "),
        ("*, a: __import__('os')", "found the annotation __import__('os'); known: "),
        ("*, a: int = f()", "found the default f(), expected a literal"),
        ("*, a: int = 'x'", "its default 'x' does not fit: "),
        ("*, a: PositiveInt = 0", "its default 0 does not fit: Input should be greater than 0"),
        ("**rest", "takes *rest; a plugin's keys are named arguments"),
        ("*, name: str", "is a word of the recipe itself; call it something else"),
    ],
)
def test_a_signature_that_a_recipe_cannot_fill_names_the_argument(tmp_path, signature, said):
    with pytest.raises(PluginError) as error:
        keys_of(plugin(tmp_path, signature))
    assert said in str(error.value) and "mine.py:" in str(error.value)


def test_words_of_the_recipe_are_kept_from_the_plugins_of_their_kind(tmp_path):
    with pytest.raises(PluginError, match="'weight' of loss 'mine' is a word of the recipe itself"):
        keys_of(plugin(tmp_path, "*, weight: float", kind="loss"))


def test_types_are_read_without_running_anything(tmp_path):
    text = "*, a: typing.Optional[int], b: 'int | None' = 3, c: dict[str, list[float]] = {}, d: Literal[1, 'x'] = 1"
    keys = {key.name: key for key in keys_of(plugin(tmp_path, text))}
    assert keys["a"].default is REQUIRED and keys["b"].default == 3
    good = model_of(find("encoder", "mine", (tmp_path / "mine.py",)))(a=None, c={"k": [1.5]}, d="x")
    assert good.model_dump(by_alias=True) == {"a": None, "b": 3, "c": {"k": [1.5]}, "d": "x"}


def test_run_time_values_are_no_keys():
    decoder = find("decoder", "toy_pen", (TOYS,))
    assert given(decoder) == ("vocabulary_size", "feature_width", "max_tokens")
    assert [key.name for key in keys_of(decoder)] == ["dropout"]


def test_class_attributes_are_read_where_they_are_written_out():
    assert class_texts(find("metric", "toy_score", (TOYS,)), "names") == ("toy_1", "toy_2")
    assert class_texts(find("metric", "toy_score", (TOYS,)), "other") is None


def test_argument_docs_join_their_lines():
    doc = "One.\n\nArgs:\n    a: first,\n        still first.\n    b (int): second.\n\nReturns:\n    c: none of it."
    assert argument_docs(doc) == {"a": "first, still first.", "b": "second."}


@pytest.mark.parametrize("shipped", list(catalogue().values()), ids=lambda p: f"{p.kind}/{p.name}")
def test_shipped_plugins_document_every_key(shipped):
    assert shipped.summary, "the first line of the docstring is what `ls` shows"
    assert [key.name for key in keys_of(shipped) if not key.doc] == []
    assert shipped.kind in KINDS and shipped.path.stem in (shipped.name, "__init__")

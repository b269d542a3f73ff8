"""Signatures as recipe keys: read as text, with errors that name a line."""

import pytest
from harness import TOYS

from framework.registry import PluginError, find
from framework.registry.signature import (
    REQUIRED,
    argument_docs,
    class_texts,
    gives,
    injected_params,
    keys_of,
    model_of,
    needs,
)


def plugin(tmp_path, signature="", kind="encoder", body=""):
    path = tmp_path / f"mine{len(list(tmp_path.iterdir()))}.py"  # files are read once in a process
    text = f'@register("{kind}", "mine")\nclass Mine:\n    def __init__(self, {signature}): ...\n{body}'
    path.write_text(text)
    return find(kind, "mine", (path,))


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
    assert said in str(error.value) and "mine0.py:" in str(error.value)


def test_words_of_the_recipe_are_kept_from_the_plugins_of_their_kind(tmp_path):
    with pytest.raises(PluginError, match="'weight' of loss 'mine' is a word of the recipe itself"):
        keys_of(plugin(tmp_path, "*, weight: float", kind="loss"))


def test_types_are_read_without_running_anything(tmp_path):
    text = "*, a: typing.Optional[int], b: 'int | None' = 3, c: dict[str, list[float]] = {}, d: Literal[1, 'x'] = 1"
    keys = {key.name: key for key in keys_of(plugin(tmp_path, text))}
    assert keys["a"].default is REQUIRED and keys["b"].default == 3
    good = model_of(find("encoder", "mine", (tmp_path / "mine0.py",)))(a=None, c={"k": [1.5]}, d="x")
    assert good.model_dump(by_alias=True) == {"a": None, "b": 3, "c": {"k": [1.5]}, "d": "x"}


def test_run_time_values_are_no_keys():
    decoder = find("decoder", "toy_pen", (TOYS,))
    assert injected_params(decoder) == ("vocabulary_size", "feature_width", "max_length")
    assert [key.name for key in keys_of(decoder)] == ["dropout"]


def test_class_attributes_are_read_where_they_are_written_out():
    assert class_texts(find("metric", "toy_score", (TOYS,)), "names") == ("toy_1", "toy_2")
    assert class_texts(find("metric", "toy_score", (TOYS,)), "other") is None


def test_argument_docs_join_their_lines():
    doc = "One.\n\nArgs:\n    a: first,\n        still first.\n    b (int): second.\n\nReturns:\n    c: none of it."
    assert argument_docs(doc) == {"a": "first, still first.", "b": "second."}


def test_keys_come_with_their_documentation_and_unit(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        '@register("augment", "mine")\nclass Mine:\n    """Turns.\n\n    Args:\n        most: Largest turn,\n'
        '            either way. [degrees]\n        share: Of exams.\n    """\n'
        "    def __init__(self, *, most: float = 1.0, share: float = 0.5): ...\n"
    )
    keys = keys_of(find("augment", "mine", (path,)))
    assert [(key.doc, key.unit) for key in keys] == [("Largest turn, either way.", "degrees"), ("Of exams.", "")]


def test_what_a_plugin_gives_and_needs_is_read_or_is_what_its_kind_does(tmp_path):
    assert gives(plugin(tmp_path)) == ("patches", "pooled")
    assert gives(plugin(tmp_path, body="    gives = ('pooled',)\n")) == ("pooled",)
    assert (needs(plugin(tmp_path, kind="decoder")), gives(plugin(tmp_path, kind="decoder"))) == (
        ("patches",),
        ("logits",),
    )
    assert needs(plugin(tmp_path, kind="loss", body="    needs = ()\n")) == ()
    topics = plugin(tmp_path, "*, topic_count: int", kind="loss", body="    needs = ('pooled',)\n")
    assert needs(topics) == ("pooled", "topics"), "a loss that asks for the number of topics needs topics"


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("loss", "", "loss 'mine' does not say what it needs; put needs = (...) under its docstring, of: patches, "),
        (
            "loss",
            "    needs = ('logit',)\n",
            "needs of loss 'mine' has 'logit'. Did you mean 'logits'? Known: patches, ",
        ),
        ("loss", "    needs = WORDS\n", 'needs is a tuple of texts, written out, such as ("patches",)'),
        ("encoder", "    needs = ('patches',)\n", "needs of encoder 'mine' has 'patches'. Known: none"),
        ("encoder", "    needs = WORDS\n", "needs is a tuple of texts, written out, such as ()"),
        ("decoder", "    needs = ('topics',)\n", "needs of decoder 'mine' has 'topics'. Known: patches, pooled"),
        ("encoder", "    gives = ('logits',)\n", "gives of encoder 'mine' has 'logits'. Known: patches, pooled"),
    ],
)
def test_a_declaration_that_cannot_be_read_names_the_plugin(tmp_path, kind, body, said):
    with pytest.raises(PluginError) as error:
        found = plugin(tmp_path, kind=kind, body=body)
        needs(found), gives(found)
    assert said in str(error.value) and "mine0.py:2: " in str(error.value)

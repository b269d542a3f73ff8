"""Signatures as recipe keys: read as text, with errors that name a line."""

import pytest
from harness import TOYS, problem

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
    ("signature", "kind"),
    [
        ("*, a", "encoder"),
        ("*, a: Path", "encoder"),
        ("*, a: list[Path]", "encoder"),
        ("*, a: __import__('os')", "encoder"),
        ("*, a: int = f()", "encoder"),
        ("*, a: int = 'x'", "encoder"),
        ("*, a: PositiveInt = 0", "encoder"),
        ("**rest", "encoder"),
        ("*, name: str", "encoder"),
        ("*, weight: float", "loss"),
    ],
)
def test_a_signature_that_cannot_be_a_recipes_keys_is_refused(tmp_path, signature, kind):
    with problem("invalid-plugin", "mine0.py:", PluginError):
        keys_of(plugin(tmp_path, signature, kind=kind))


def test_types_are_read_without_running_anything(tmp_path):
    text = "*, a: typing.Optional[int], b: 'int | None' = 3, c: dict[str, list[float]] = {}, d: Literal[1, 'x'] = 1"
    keys = {key.name: key for key in keys_of(plugin(tmp_path, text))}
    assert keys["a"].default is REQUIRED and keys["b"].default == 3
    good = model_of(find("encoder", "mine", (tmp_path / "mine0.py",)))(a=None, c={"k": [1.5]}, d="x")
    assert good.model_dump(by_alias=True) == {"a": None, "b": 3, "c": {"k": [1.5]}, "d": "x"}


def test_injected_parameters_are_not_keys():
    decoder = find("decoder", "toy_pen", (TOYS,))
    assert injected_params(decoder) == ("vocabulary_size", "feature_width", "max_length")
    assert [key.name for key in keys_of(decoder)] == ["dropout"]


def test_literal_class_attributes_are_read():
    assert class_texts(find("metric", "toy_score", (TOYS,)), "names") == ("toy_1", "toy_2")
    assert class_texts(find("metric", "toy_score", (TOYS,)), "other") is None


def test_argument_docs_join_their_lines():
    doc = "One.\n\nArgs:\n    a: first,\n        more.\n    b (int): second.\n\nReturns:\n    c: none of it."
    assert argument_docs(doc) == {"a": "first, more.", "b": "second."}


def test_keys_come_with_their_documentation_and_unit(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        '@register("augment", "mine")\nclass Mine:\n    """Turns.\n\n    Args:\n        most: Largest turn,\n'
        '            either way. [degrees]\n        share: Of exams.\n    """\n'
        "    def __init__(self, *, most: float = 1.0, share: float = 0.5): ...\n"
    )
    keys = keys_of(find("augment", "mine", (path,)))
    assert [(key.doc, key.unit) for key in keys] == [("Largest turn, either way.", "degrees"), ("Of exams.", "")]


def test_gives_and_needs_of_a_plugin_are_declared_or_the_default_of_its_kind(tmp_path):
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
    ("kind", "body", "code"),
    [
        ("loss", "", "invalid-plugin"),
        ("loss", "    needs = ('logit',)\n", "unknown-name"),
        ("loss", "    needs = WORDS\n", "invalid-plugin"),
        ("encoder", "    needs = ('patches',)\n", "unknown-name"),
        ("encoder", "    needs = WORDS\n", "invalid-plugin"),
        ("decoder", "    needs = ('topics',)\n", "unknown-name"),
        ("encoder", "    gives = ('logits',)\n", "unknown-name"),
    ],
)
def test_needs_and_gives_that_cannot_be_read_are_refused(tmp_path, kind, body, code):
    with problem(code, "mine0.py:2: ", PluginError):
        found = plugin(tmp_path, kind=kind, body=body)
        needs(found), gives(found)

"""Turns a plugin's signature, read as text, into a pydantic model of its recipe keys: nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    create_model,
)

from framework.registry.plugins import KINDS, NEEDS_TOPICS, Plugin, PluginError, did_you_mean, short
from framework.registry.types import Fraction

# Words of the recipe itself, which stand beside a plugin's keys.
RESERVED = {"loss": frozenset({"weight"}), "optimizer": frozenset({"lr", "encoder_lr", "group_lrs", "layer_decay"})}

PLAIN: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "None": None,
    "PositiveInt": PositiveInt,
    "NonNegativeInt": NonNegativeInt,
    "PositiveFloat": PositiveFloat,
    "NonNegativeFloat": NonNegativeFloat,
    "Fraction": Fraction,
}
GENERIC: dict[str, Any] = {"list": list, "dict": dict, "tuple": tuple, "Literal": Literal, "Optional": Optional}
REQUIRED = object()
UNIT = re.compile(r"(.*?)(?:\s*\[([^\[\]]+)\])?", re.DOTALL)


@dataclass(frozen=True)
class Key:
    """One recipe key of a plugin."""

    name: str
    type: Any
    type_text: str
    default: Any  # REQUIRED: the recipe must set it
    doc: str
    unit: str = ""  # what stands in brackets at the end of its documentation: `Largest shift. [px]`

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def _last_name(node: ast.expr) -> str | None:
    """`Literal` of both `Literal` and `typing.Literal`."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def read_type(node: ast.expr) -> Any:
    """The type that an annotation spells, from a closed list of names. Raises ValueError for any other."""
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return read_type(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return Union[read_type(node.left), read_type(node.right)]  # noqa: UP007
    if isinstance(node, ast.Subscript):
        name = _last_name(node.value)
        if name not in GENERIC:
            raise ValueError(ast.unparse(node))
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "Literal":
            return Literal[tuple(ast.literal_eval(part) for part in parts)]
        inner = [... if isinstance(p, ast.Constant) and p.value is ... else read_type(p) for p in parts]
        return GENERIC[name][tuple(inner) if len(inner) > 1 else inner[0]]
    name = _last_name(node)
    if name not in PLAIN:
        raise ValueError(ast.unparse(node))
    return PLAIN[name]


def argument_docs(doc: str) -> dict[str, str]:
    """The texts of a Google-style `Args:` section, by argument."""
    found: dict[str, str] = {}
    section = re.search(r"^Args:[ \t]*\n((?:[ \t]+.*(?:\n|$)|[ \t]*\n)+)", doc, re.MULTILINE)
    name, indent = None, None
    for line in section.group(1).splitlines() if section else []:
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        begin = re.match(r"\s*\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)", line)
        if begin and depth == indent:
            name = begin.group(1)
            found[name] = begin.group(2)
        elif name is not None:
            found[name] = f"{found[name]} {line.strip()}"
    return found


def _arguments(plugin: Plugin) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    signature = plugin.arguments
    for arg in (signature.vararg, signature.kwarg):
        if arg is not None:
            raise PluginError(
                f"{plugin.where}: {plugin.kind} '{plugin.name}' takes *{arg.arg}; a plugin's keys are named arguments"
            )
    plain = [*signature.posonlyargs, *signature.args]
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(signature.defaults)), *signature.defaults]
    pairs = list(zip(plain, defaults))
    if isinstance(plugin.node, ast.ClassDef):
        pairs = pairs[1:]  # self
    yield from pairs
    yield from zip(signature.kwonlyargs, signature.kw_defaults)


def injected_params(plugin: Plugin) -> tuple[str, ...]:
    """The run-time values that this plugin asks for."""
    return tuple(arg.arg for arg, _ in _arguments(plugin) if arg.arg in KINDS[plugin.kind].injected_params)


@cache
def keys_of(plugin: Plugin) -> tuple[Key, ...]:
    """What a recipe may set of a plugin, in the order of its signature.

    Raises:
        PluginError: an argument without a plain annotation or literal default, or of a reserved name.
    """
    docs = argument_docs(plugin.doc)
    keys = []
    for arg, default in _arguments(plugin):
        if arg.arg in KINDS[plugin.kind].injected_params:
            continue
        here = f"{short(plugin.path)}:{arg.lineno}: argument '{arg.arg}' of {plugin.kind} '{plugin.name}'"
        if arg.arg == "name" or arg.arg in RESERVED.get(plugin.kind, ()):
            raise PluginError(f"{here} is a word of the recipe itself; call it something else")
        if arg.annotation is None:
            raise PluginError(f"{here} has no annotation, which a recipe key needs, such as {arg.arg}: int")
        try:
            kind = read_type(arg.annotation)
        except (ValueError, SyntaxError, TypeError):
            raise PluginError(
                f"{here}: found the annotation {ast.unparse(arg.annotation)}; known: {', '.join(PLAIN)}, Literal[...], "
                "Optional[...], list[...], dict[...], tuple[...] and unions of them"
            ) from None
        value: Any = REQUIRED
        if default is not None:
            try:
                value = ast.literal_eval(default)
                TypeAdapter(kind).validate_python(value)
            except ValidationError as error:
                problem = error.errors()[0]["msg"]
                raise PluginError(f"{here}: its default {ast.unparse(default)} does not fit: {problem}") from None
            except (ValueError, SyntaxError):
                raise PluginError(
                    f"{here}: found the default {ast.unparse(default)}, expected a literal (a number, text, list ...)"
                ) from None
        doc, unit = UNIT.fullmatch(docs.get(arg.arg, "")).groups()  # type: ignore[union-attr]
        keys.append(Key(arg.arg, kind, ast.unparse(arg.annotation), value, doc, unit or ""))
    return tuple(keys)


@cache
def model_of(plugin: Plugin) -> type[BaseModel]:
    """A pydantic model of a plugin's keys: unknown keys forbidden, defaults filled in.

    Its fields are called `key_<name>` behind aliases, since a plugin's key may be called as a method of BaseModel.
    """
    fields: dict[str, Any] = {}
    for key in keys_of(plugin):
        default = ... if key.required else key.default
        fields[f"key_{key.name}"] = (Annotated[key.type, Field(alias=key.name)], default)
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    return create_model(f"{plugin.kind}_{plugin.name}", __config__=config, **fields)


# What parts of a model hand to one another, and which kind a plugin is that gives it.
GIVERS = {
    "patches": "encoder",
    "pooled": "encoder",
    "logits": "decoder",
    "decoder": "decoder",  # itself, to write reports with
    "topics": "distiller",
}
BY_DECODER = frozenset(word for word, giver in GIVERS.items() if giver == "decoder")
ITSELF = frozenset({"decoder"})  # what every plugin of the kind gives, without saying so
# Of plugins that declare nothing. A loss must say what it needs.
GIVES = {"encoder": ("patches", "pooled"), "decoder": ("logits",), "distiller": ("topics",)}
NEEDS: dict[str, tuple[str, ...]] = {"decoder": ("patches",)}
NEEDS_FROM = {"decoder": ("encoder",), "loss": ("encoder", "decoder", "distiller")}  # the kinds that it comes after


def gives(plugin: Plugin) -> tuple[str, ...]:
    """What a plugin hands on: its class attribute `gives`, or what its kind gives by default.

    Raises:
        PluginError: a word in it that is not known.
    """
    return _declared(plugin, "gives", GIVES.get(plugin.kind, ()))


def needs(plugin: Plugin) -> tuple[str, ...]:
    """What a plugin must be handed: its class attribute `needs`, or what its kind needs by default.

    Raises:
        PluginError: a word in it that is not known, or a loss without it.
    """
    found = _declared(plugin, "needs", NEEDS.get(plugin.kind))
    topics = NEEDS_TOPICS & set(injected_params(plugin)) and "topics" not in found
    return (*found, "topics") if topics else found


def _declared(plugin: Plugin, attribute: str, default: tuple[str, ...] | None) -> tuple[str, ...]:
    givers = NEEDS_FROM.get(plugin.kind, ()) if attribute == "needs" else (plugin.kind,)
    itself = ITSELF if attribute == "gives" else frozenset()
    known = [word for word, giver in GIVERS.items() if giver in givers and word not in itself]
    found = class_texts(plugin, attribute)
    if found is None and _assigned(plugin, attribute) is not None:
        example = f'("{known[0]}",)' if known else "()"
        raise PluginError(f"{plugin.where}: {attribute} is a tuple of texts, written out, such as {example}")
    if found is None and default is None and plugin.kind == "loss":
        raise PluginError(
            f"{plugin.where}: loss '{plugin.name}' does not say what it needs; put needs = (...) under its docstring, "
            f"of: {', '.join(known)}"
        )
    for word in found or ():
        if word not in known:
            raise PluginError(
                f"{plugin.where}: {attribute} of {plugin.kind} '{plugin.name}' has '{word}'."
                f"{did_you_mean(word, known)} Known: {', '.join(known) or 'none'}"
            )
    return found if found is not None else default or ()


def _assigned(plugin: Plugin, attribute: str) -> ast.expr | None:
    """What a class attribute is set to in the body of the class."""
    for statement in plugin.node.body if isinstance(plugin.node, ast.ClassDef) else []:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
            return getattr(statement, "value", None)
    return None


def class_flag(plugin: Plugin, attribute: str) -> bool | None:
    """A class attribute that is written out as True or False; None where it is not."""
    value = _assigned(plugin, attribute)
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, bool) else None


def class_method(plugin: Plugin, name: str) -> bool | None:
    """Whether a class has a method, written out in its body; None where a base class may have it."""
    if not isinstance(plugin.node, ast.ClassDef):
        return None
    here = any(isinstance(part, ast.FunctionDef) and part.name == name for part in plugin.node.body)
    return True if here or _assigned(plugin, name) is not None else None if plugin.node.bases else False


def class_texts(plugin: Plugin, attribute: str) -> tuple[str, ...] | None:
    """A class attribute that is written out as a tuple or list of texts; None where it is not."""
    try:
        value = ast.literal_eval(_assigned(plugin, attribute))  # type: ignore[arg-type]
    except (ValueError, TypeError, SyntaxError):
        return None
    if isinstance(value, (tuple, list)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return None

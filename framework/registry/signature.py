"""Makes a pydantic model of a plugin's recipe keys from its signature, which is read as text: nothing is imported."""

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

from framework.registry.source import KINDS, NEEDS_TOPICS, Plugin, PluginError, short, unknown_name
from framework.registry.types import Fraction, JsonFile, TableFile

# Keys of the recipe itself in the same block as a plugin's keys.
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
    "JsonFile": JsonFile,
    "TableFile": TableFile,
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
    default: Any  # REQUIRED if the recipe must set it
    doc: str
    unit: str = ""  # in brackets at the end of its documentation: `Largest shift. [px]`

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def _last_name(node: ast.expr) -> str | None:
    """`Literal` for both `Literal` and `typing.Literal`."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def read_type(node: ast.expr) -> Any:
    """The type of an annotation, from a closed list of names. Raises ValueError for any other."""
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
    """The texts of a Google-style `Args:` section by argument."""
    docs: dict[str, str] = {}
    section = re.search(r"^Args:[ \t]*\n((?:[ \t]+.*(?:\n|$)|[ \t]*\n)+)", doc, re.MULTILINE)
    name, indent = None, None
    for line in section.group(1).splitlines() if section else []:
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        match = re.match(r"\s*\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)", line)
        if match and depth == indent:
            name = match.group(1)
            docs[name] = match.group(2)
        elif name is not None:
            docs[name] = f"{docs[name]} {line.strip()}"
    return docs


def _arguments(plugin: Plugin) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    signature = plugin.arguments
    for arg in (signature.vararg, signature.kwarg):
        if arg is not None:
            raise PluginError(
                "invalid-plugin", f"{plugin.kind} '{plugin.name}' takes *{arg.arg}", place=plugin.where,
                expected="named arguments, which are the plugin's keys",
            )  # fmt: skip
    plain = [*signature.posonlyargs, *signature.args]
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(signature.defaults)), *signature.defaults]
    pairs = list(zip(plain, defaults))
    if isinstance(plugin.node, ast.ClassDef):
        pairs = pairs[1:]  # self
    yield from pairs
    yield from zip(signature.kwonlyargs, signature.kw_defaults)


def injected_params(plugin: Plugin) -> tuple[str, ...]:
    """The run-time values that this plugin takes."""
    return tuple(arg.arg for arg, _ in _arguments(plugin) if arg.arg in KINDS[plugin.kind].injected_params)


@cache
def keys_of(plugin: Plugin) -> tuple[Key, ...]:
    """What a recipe may set of a plugin, in the order of its signature.

    Raises:
        PluginError: an argument has no readable annotation, no literal default, or a reserved name.
    """
    docs = argument_docs(plugin.doc)
    keys = []
    for arg, default in _arguments(plugin):
        if arg.arg in KINDS[plugin.kind].injected_params:
            continue
        place = f"{short(plugin.path)}:{arg.lineno}: argument '{arg.arg}' of {plugin.kind} '{plugin.name}'"
        if arg.arg == "name" or arg.arg in RESERVED.get(plugin.kind, ()):
            raise PluginError("invalid-plugin", "this name is reserved for the recipe", place=place, hint="Rename it.")
        if arg.annotation is None:
            raise PluginError("invalid-plugin", "no annotation", place=place, expected=f"one, such as {arg.arg}: int")
        try:
            kind = read_type(arg.annotation)
        except (ValueError, SyntaxError, TypeError):
            types = f"{', '.join(PLAIN)}, Literal[...], Optional[...], list[...], dict[...], tuple[...] or a union"
            annotation = ast.unparse(arg.annotation)
            raise PluginError(
                "invalid-plugin", f"found the annotation {annotation}", place=place, expected=types
            ) from None
        value: Any = REQUIRED
        if default is not None:
            try:
                value = ast.literal_eval(default)
                TypeAdapter(kind).validate_python(value)
            except ValidationError as error:
                reason = f"the default {ast.unparse(default)} does not match the annotation: {error.errors()[0]['msg']}"
                raise PluginError("invalid-plugin", reason, place=place) from None
            except (ValueError, SyntaxError):
                raise PluginError(
                    "invalid-plugin", f"found the default {ast.unparse(default)}", place=place,
                    expected="a literal (a number, text, list ...)",
                ) from None  # fmt: skip
        doc, unit = UNIT.fullmatch(docs.get(arg.arg, "")).groups()  # type: ignore[union-attr]
        keys.append(Key(arg.arg, kind, ast.unparse(arg.annotation), value, doc, unit or ""))
    return tuple(keys)


@cache
def model_of(plugin: Plugin) -> type[BaseModel]:
    """A pydantic model of a plugin's keys, which forbids unknown keys and fills in defaults.

    Its fields are named `key_<name>` with aliases, since a plugin's key may have the name of a method of BaseModel.
    """
    fields: dict[str, Any] = {}
    for key in keys_of(plugin):
        default = ... if key.required else key.default
        fields[f"key_{key.name}"] = (Annotated[key.type, Field(alias=key.name)], default)
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    return create_model(f"{plugin.kind}_{plugin.name}", __config__=config, **fields)


COPIES = "copies"
# What parts of a model pass to one another, and the kind of plugin that provides it.
GIVERS = {
    "patches": "encoder",
    "pooled": "encoder",
    COPIES: "encoder",  # pooled features of each view alone, of two augmentations; of losses only
    "logits": "decoder",
    "decoder": "decoder",  # the module itself, to generate reports
    "topics": "distiller",
}
BY_DECODER = frozenset(word for word, giver in GIVERS.items() if giver == "decoder")
ITSELF = frozenset({"decoder"})  # provided by every plugin of the kind, without declaring it
MADE_OF = {COPIES: "pooled"}  # provided by a plugin that declares the other
# Of plugins that declare nothing. A loss must declare what it needs.
GIVES = {"encoder": ("patches", "pooled"), "decoder": ("logits",), "distiller": ("topics",)}
NEEDS: dict[str, tuple[str, ...]] = {"decoder": ("patches",)}
NEEDS_FROM = {
    "decoder": ("encoder",),
    "loss": ("encoder", "decoder", "distiller"),
}  # the kinds whose outputs it receives


def gives(plugin: Plugin) -> tuple[str, ...]:
    """What a plugin provides: its class attribute `gives`, or the default of its kind.

    Raises:
        PluginError: `gives` has an unknown name.
    """
    return _declared(plugin, "gives", GIVES.get(plugin.kind, ()))


def needs(plugin: Plugin) -> tuple[str, ...]:
    """What a plugin receives: its class attribute `needs`, or the default of its kind.

    Raises:
        PluginError: `needs` has an unknown name, or is missing in a loss.
    """
    needed = _declared(plugin, "needs", NEEDS.get(plugin.kind))
    topics = NEEDS_TOPICS & set(injected_params(plugin)) and "topics" not in needed
    return (*needed, "topics") if topics else needed


def _declared(plugin: Plugin, attribute: str, default: tuple[str, ...] | None) -> tuple[str, ...]:
    givers = NEEDS_FROM.get(plugin.kind, ()) if attribute == "needs" else (plugin.kind,)
    implied = () if plugin.kind == "loss" else (*ITSELF, *MADE_OF)
    known = [name for name, giver in GIVERS.items() if giver in givers and name not in implied]
    names = class_texts(plugin, attribute)
    place = f"{plugin.where}: {attribute} of {plugin.kind} '{plugin.name}'"
    if names is None and _assigned(plugin, attribute) is not None:
        example = f'("{known[0]}",)' if known else "()"
        raise PluginError(
            "invalid-plugin", "cannot be read", place=place, expected=f"a literal tuple of strings, such as {example}"
        )
    if names is None and default is None and plugin.kind == "loss":
        raise PluginError(
            "invalid-plugin", "is missing", place=place,
            hint=f"Put needs = (...) below the docstring, with any of: {', '.join(known)}",
        )  # fmt: skip
    for name in names or ():
        if name not in known:
            raise PluginError.of(
                [unknown_name("input" if attribute == "needs" else "output", name, known, place=place)]
            )
    return names if names is not None else default or ()


def _assigned(plugin: Plugin, attribute: str) -> ast.expr | None:
    """The expression that the body of the class assigns to an attribute."""
    for statement in plugin.node.body if isinstance(plugin.node, ast.ClassDef) else []:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
            return getattr(statement, "value", None)
    return None


def class_flag(plugin: Plugin, attribute: str) -> bool | None:
    """A class attribute that is a literal True or False, else None."""
    value = _assigned(plugin, attribute)
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, bool) else None


def class_method(plugin: Plugin, name: str) -> bool | None:
    """Whether the body of a class defines a method; None if a base class may define it."""
    if not isinstance(plugin.node, ast.ClassDef):
        return None
    here = any(isinstance(part, ast.FunctionDef) and part.name == name for part in plugin.node.body)
    return True if here or _assigned(plugin, name) is not None else None if plugin.node.bases else False


def class_texts(plugin: Plugin, attribute: str) -> tuple[str, ...] | None:
    """A class attribute that is a literal tuple or list of strings, else None."""
    try:
        value = ast.literal_eval(_assigned(plugin, attribute))  # type: ignore[arg-type]
    except (ValueError, TypeError, SyntaxError):
        return None
    if isinstance(value, (tuple, list)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return None

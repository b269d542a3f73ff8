"""Checks a merged recipe against the schema and the plugins' signatures, and tells every mistake at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from framework.recipe.fit import note_mirrored_sides, note_misfits
from framework.recipe.merge import Merged, origin, resolve, slots, value_at
from framework.recipe.monitor import EXAMPLE, note_monitor
from framework.recipe.saved import keys_in
from framework.recipe.schema import NO_TOPICS, SLOTS, Recipe, Section, WeightSchedule, section_in
from framework.recipe.score_names import metric_of, reward_problem
from framework.recipe.source import Key, RecipeError, dotted, is_within
from framework.registry import KINDS, Plugin, PluginError, catalogue, did_you_mean, find, replaced, short
from framework.registry.signature import (
    BY_DECODER,
    RESERVED,
    class_flag,
    class_texts,
    injected_params,
    keys_of,
    model_of,
)

BY_NAMES: Key = ("losses",)  # whose keys are names of losses, with one section for them all
UNREADABLE = {"name": "?"}  # stands for a block that was complained of, so that the rest can be checked
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_unicode": "a text of whole characters",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "none_required": "null",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "letters, digits, '.', '_', '-' and '+', no path",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
}


@dataclass
class Check:
    merged: Merged
    name: str  # of the file, where nothing else is known
    problems: list[tuple[Key, str]] = field(default_factory=list)
    plugins: dict[Key, Plugin] = field(default_factory=dict)

    def note(self, key: Key, problem: str) -> None:
        self.problems.append((key, problem))

    def lines(self) -> list[str]:
        told = []
        for key, problem in self.problems:
            where = origin(self.merged, key, self.name)
            if where.startswith("override: "):
                same = where.removeprefix("override: ").partition("=")[0].strip() == dotted(key)
                told.append(f"{where}: {problem}" if same else f"{where}: {dotted(key)}: {problem}")
            else:
                told.append(f"{where}: {dotted(key)}: {problem}" if key else f"{where}: {problem}")
        return list(dict.fromkeys([*self.merged.problems, *told]))


def found(value: Any) -> str:
    """A value as its author wrote it."""
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, (dict, list)) and len(repr(value)) > 60:
        return "a list" if isinstance(value, list) else f"a mapping of {', '.join(map(str, value))}"
    return json.dumps(value, ensure_ascii=False, default=str)


def looks_like_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def explain(
    error: ValidationError, tree: Any, base: Key, known: Callable[[Key], list[str]]
) -> Iterable[tuple[Key, str]]:
    """pydantic's findings in our words: one a place, however many types a union has.

    Args:
        tree: what was validated.
        base: where it stands in the recipe.
        known: gives the keys that are known at a place.
    """
    wanted: dict[Key, list[str]] = {}
    for item in error.errors(include_url=False):
        place: Key = ()
        for part in item["loc"]:
            try:
                value_at(tree, (*place, part))
            except KeyError:
                continue  # it names a member of a union, not a place
            place = (*place, part)
        if item["type"] == "missing":
            place = (*place, item["loc"][-1])
        if item["type"] == "missing":
            yield (*base, *place), "is missing"
        elif item["type"] == "extra_forbidden":
            names = known(place[:-1])
            yield (
                (*base, *place),
                f"unknown key.{did_you_mean(str(place[-1]), names)} Known: {', '.join(names) or 'none'}",
            )
        else:
            limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in item.get("ctx", {}).items()}
            text = EXPECTED[item["type"]].format(**limits) if item["type"] in EXPECTED else item["msg"]
            if text not in wanted.setdefault(place, []):
                wanted[place].append(text)
    for place, texts in wanted.items():
        value = value_at(tree, place)
        advice = ""
        if looks_like_number(value) and any("number" in text or "at " in text for text in texts):
            advice = "; take the quotes away"
        elif isinstance(value, str):
            options = [word for text in texts for word in text.replace(" or ", ", ").split(", ") if word[:1] == "'"]
            advice = (did_you_mean(value, [word.strip("'") for word in options]) if options else "").rstrip()
            advice = f".{advice}" if advice else ""
        yield (*base, *place), f"found {found(value)}, expected {' or '.join(texts)}{advice}"


def _fields(place: Key) -> list[str]:
    """The keys that the schema knows at a place."""
    model = _section(place)
    return [] if model is None else list(model.words())


def _section(place: Key) -> type[Section] | None:
    """The section of the schema that stands at a place, or at each of its names; None where it is a value."""
    model: type[Section] | None = Recipe
    for part in place if place[:1] != BY_NAMES else (*BY_NAMES, *place[2:]):
        words = {} if model is None else model.words()
        model = section_in(model.model_fields[words[str(part)]].annotation) if model and part in words else None
    return model


def _wanted(place: Key) -> str:
    """What the schema expects at a place where nothing stands."""
    home = _section(place[:-1])
    if _section(place) is not None or home is None or place[-1] not in home.words():
        fields = [] if place == BY_NAMES else _fields(place)
        return f"a mapping of {', '.join(fields) or 'names'}"
    try:
        wanted: Any = home.model_fields[home.words()[str(place[-1])]].annotation
        TypeAdapter(wanted).validate_python(object())
    except ValidationError as error:
        return " or ".join(dict.fromkeys(EXPECTED.get(item["type"], item["msg"]) for item in error.errors()))
    return "a value"


def _schema_keys(place: Key) -> list[str]:
    return [name for name in _fields(place) if not (place == () and name == "plugins")] + (
        ["_base_", "plugins"] if place == () else []
    )


def _block(check: Check, key: Key, kind: str, block: Any) -> Any:
    """Checks one plugin's block; gives it as the schema wants it."""
    files = check.merged.plugin_files
    if not isinstance(block, dict):
        nothing_is_fine = block is None and key == ("data", "augment")
        if not nothing_is_fine:
            example = "weight: 1.0" if kind == "loss" else "name: ..."
            article = "an" if kind[0] in "aeo" else "a"
            check.note(key, f"found {found(block)}, expected {article} {kind}: {{{example}}}")
        return None if nothing_is_fine else dict(UNREADABLE)
    words = RESERVED.get(kind, frozenset())
    own = {name: value for name, value in block.items() if name in words}
    keys = {name: value for name, value in block.items() if name not in words | {"name"}}
    if kind == "loss":
        if "name" in block:
            check.note((*key, "name"), "a loss is named by its key in losses; take name out")
        name: Any = key[-1]
    else:
        name = block.get("name")
    if not isinstance(name, str):
        names = sorted(n for k, n in catalogue(files) if k == kind)
        what = "is missing" if "name" not in block else f"found {found(name)}, expected a text"
        check.note((*key, "name"), f"{what}. Known: {', '.join(names)}")
        return {**UNREADABLE, **own}
    if kind == "distiller" and name == NO_TOPICS:
        for extra in keys:
            check.note((*key, extra), "the distiller 'none' has no keys")
        return {"name": name}
    try:
        plugin = find(kind, name, files)
        model = model_of(plugin)
    except PluginError as error:
        text = str(error)
        if kind == "distiller" and text.startswith("Unknown"):
            text += f", {NO_TOPICS}"
        check.note(key if kind == "loss" else (*key, "name"), text)
        return {"name": name, **own}
    check.plugins[key] = plugin
    return {"name": name, "keys": _keys(check, key, keys, plugin, model), **own}


def _keys(check: Check, key: Key, keys: dict[str, Any], plugin: Plugin, model: type[BaseModel]) -> dict[str, Any]:
    """Checks one plugin's own keys; gives all of them, defaults filled in."""
    for run_time in [n for n in keys if n in KINDS[plugin.kind].injected_params]:
        check.note((*key, run_time), "only the run knows this value and hands it over; take it out")
        del keys[run_time]
    try:
        # As JSON: strict about types, yet a list may fill a tuple.
        return model.model_validate_json(json.dumps(keys), strict=True).model_dump(by_alias=True)
    except ValidationError as error:
        types = {known.name: known.type_text for known in keys_of(plugin)}
        names = [*sorted(RESERVED.get(plugin.kind, ())), *types]
        for place, problem in explain(error, keys, key, lambda place: names if place == () else []):
            if problem == "is missing" and place[-1] in types:
                problem = f"is missing, expected {types[str(place[-1])]}"
            check.note(place, problem)
    return keys


def _whole(check: Check, tree: dict[str, Any]) -> Recipe | None:
    try:
        return Recipe.model_validate(tree, strict=True)
    except ValidationError as error:
        told = {key for key, _ in check.problems}
        for place, problem in explain(error, tree, (), _schema_keys):
            if place in told or any(place[: len(key)] == key for key in told):
                continue
            if problem == "is missing" and place in SLOTS:
                names = sorted(n for k, n in catalogue(check.merged.plugin_files) if k == SLOTS[place])
                problem = f"is missing, expected {{name: ...}}. Known: {', '.join(names)}"
            elif problem == "is missing":
                problem = f"is missing, expected {_wanted(place)}"
            elif place == ("evaluate", "monitor"):
                problem = problem.replace("a text", f"val/<score>, or several with their weights: {EXAMPLE}")
            elif problem.startswith("unknown key"):
                homes = [s for s in Recipe.model_fields if place[-1] in _fields((s,))]
                problem = f"unknown key here; it belongs in {' or '.join(homes)}" if homes else problem
            check.note(place, problem)
    return None


def _together(check: Check, recipe: Recipe) -> None:
    """What no single key can tell."""
    if not recipe.active_losses:
        check.note(("losses",), "no loss has a weight above 0, so there is nothing to learn")
    for name, loss in recipe.losses.items():
        weight = loss.weight
        if isinstance(weight, WeightSchedule) and weight.begin > weight.end:
            check.note(
                ("losses", name, "weight", "end"),
                f"found {weight.end:g}, expected at least begin, which is {weight.begin:g}",
            )
    losses = set(recipe.active_losses)
    note_misfits(check.plugins, recipe.has_topics, losses, check.merged.plugin_files, check.note)
    train = recipe.train
    if isinstance(train.micro_batch_size, int) and train.batch_size % train.micro_batch_size:
        fits = [n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0]
        check.note(
            ("train", "micro_batch_size"),
            f"found {train.micro_batch_size}, expected a divisor of train.batch_size = {train.batch_size}: "
            f"{', '.join(map(str, fits))}",
        )
    names = [metric.name for metric in recipe.evaluate.metrics]
    for index, name in enumerate(names):
        if name in names[:index] and name != UNREADABLE["name"]:
            check.note(("evaluate", "metrics", index), f"'{name}' stands twice")
    _strategy(check, recipe)
    _terms(check, recipe)
    _rates(check, recipe)
    if recipe.data.augment is not None:
        note_mirrored_sides(check.plugins, recipe.data.augment.keys, check.note)
    known = keys_in(recipe)
    for index, name in enumerate(recipe.resume_ignore):
        if name not in known:
            guess = did_you_mean(name, known)
            check.note(("resume_ignore", index), f"found {name!r}, expected a key of this recipe.{guess}")
    note_monitor(recipe, check.plugins, check.note)


def _strategy(check: Check, recipe: Recipe) -> None:
    """Settings of `distributed` that the strategy would ignore."""
    asked, strategy = recipe.distributed, recipe.distributed.strategy
    cut_by_deepspeed = strategy.startswith("zero")
    if asked.offload == "optimizer" and not cut_by_deepspeed:
        check.note(("distributed", "offload"), f"'optimizer' is for zero1, zero2 and zero3; strategy is {strategy}")
    if asked.offload == "all" and strategy not in ("zero3", "fsdp"):
        check.note(
            ("distributed", "offload"), f"'all' is for zero3 and fsdp, which cut weights; strategy is {strategy}"
        )
    if asked.deepspeed_config is not None and not cut_by_deepspeed:
        check.note(
            ("distributed", "deepspeed_config"), f"is for zero1, zero2 and zero3; strategy is {strategy}, which is not"
        )
    if recipe.train.clip_by == "value" and cut_by_deepspeed:
        check.note(
            ("train", "clip_by"), f"'value' is for ddp and fsdp: DeepSpeed limits norms alone; strategy is {strategy}"
        )
    if recipe.train.clip_by == "value" and recipe.train.max_grad_norm is None:
        check.note(("train", "clip_by"), "found 'value', but train.max_grad_norm is null, so there is no limit to hold")
    if recipe.train.precision == "fp16" and strategy not in ("auto", "ddp"):
        check.note(("train", "precision"), f"fp16 is for ddp; under {strategy} take bf16 or fp32")


def _terms(check: Check, recipe: Recipe) -> None:
    """What losses ask of the rest, beside the parts that they need."""
    strategy, chosen = recipe.distributed.strategy, [metric.name for metric in recipe.evaluate.metrics]
    for name, loss in recipe.active_losses.items():
        key: Key = ("losses", name)
        plugin = check.plugins.get(key)
        if plugin is None:
            continue  # unknown, which was said
        if "decoder" in (class_texts(plugin, "needs") or ()) and strategy in ("zero3", "fsdp"):
            check.note(
                key,
                f"writes reports with the decoder, which needs whole weights on each process, and {strategy} cuts "
                "them; take distributed.strategy=ddp, zero1 or zero2",
            )
        if class_flag(plugin, "signed") and recipe.train.weighting == "uncertainty":
            check.note(
                ("train", "weighting"),
                f"'uncertainty' is for terms that are never below 0, and losses.{name} can be: its factor would grow "
                "without end",
            )
        if "make_reward" not in injected_params(plugin):
            continue
        reward = loss.keys.get("reward", {})
        if not reward:
            check.note((*key, "reward"), "no score has a weight; expected for instance {cider: 1.0}")
        for score, weight in reward.items():
            try:
                metric = metric_of(score, catalogue(recipe.plugin_files), chosen)
            except ValueError as error:
                check.note((*key, "reward", score), str(error))
                continue
            if problem := reward_problem(score, weight, metric):
                check.note((*key, "reward", score), problem)
    _idle_decoder(check, recipe)


def _idle_decoder(check: Check, recipe: Recipe) -> None:
    """A decoder that is to learn and gets no gradient, which ddp does not bear on several processes."""
    plugins = [check.plugins.get(("losses", name)) for name in recipe.active_losses]
    needed = [class_texts(plugin, "needs") if plugin else None for plugin in plugins]
    if not needed or any(words is None or BY_DECODER & set(words) for words in needed):
        return  # it learns; or what the losses need is not known, which was said
    rates = recipe.optimizer.group_lrs
    at_rest = rates.get("decoder") == 0 and not any(rate for part, rate in rates.items() if is_within(part, "decoder"))
    if not at_rest and "decoder" not in recipe.train.freeze:
        check.note(
            ("losses",),
            f"none needs the decoder ({', '.join(recipe.active_losses)}), so it would learn nothing; set "
            "train.freeze=[decoder] (a first stage, for the encoder alone), or add next_token",
        )


def _rates(check: Check, recipe: Recipe) -> None:
    """Parts that no model has, by name. Parts of an encoder or a decoder are known once it is built."""
    model, losses = ["encoder", "decoder"], [f"losses.{name}" for name in recipe.active_losses]
    losses += ["weighting"] if recipe.train.weighting == "uncertainty" else []
    named: dict[Key, tuple[str, list[str]]] = {
        **{("optimizer", "group_lrs", prefix): (prefix, model + losses) for prefix in recipe.optimizer.group_lrs},
        **{("train", "freeze", n): (prefix, model + losses) for n, prefix in enumerate(recipe.train.freeze)},
        **{("init_exclude", n): (prefix, model) for n, prefix in enumerate(recipe.init_exclude)},
    }
    for key, (prefix, known) in named.items():
        if not any(is_within(prefix, part) for part in known):
            check.note(
                key,
                f"names no part of the model.{did_you_mean(prefix, known)} Known: {', '.join(known)} and their parts",
            )
    if recipe.init_exclude and recipe.init_from is None:
        check.note(
            ("init_exclude",), "says what of init_from begins anew, which is null; set it, or take init_exclude out"
        )
    if recipe.optimizer.encoder_lr is not None and "encoder" in recipe.optimizer.group_lrs:
        check.note(
            ("optimizer", "group_lrs", "encoder"), "is optimizer.encoder_lr by another name; take one of them out"
        )


def check_recipe(merged: Merged, path: Path) -> Recipe:
    """The recipe that a merged tree spells. Raises RecipeError with all mistakes."""
    check = Check(merged, short(path))
    for key, problem in resolve(merged):
        check.note(key, problem)
    if check.problems or not all(file.is_file() for file in merged.plugin_files):
        raise RecipeError(*check.lines())  # the rest would be told of values and plugins that are not there
    try:
        catalogue(merged.plugin_files)
    except PluginError as error:
        raise RecipeError(*str(error).split("\n")) from None
    tree: Any = deepcopy(merged.tree)
    for key, kind, block in list(slots(merged.tree)):
        value_at(tree, key[:-1])[key[-1]] = _block(check, key, kind, block)
    metrics = tree["evaluate"].get("metrics") if isinstance(tree.get("evaluate"), dict) else None
    if isinstance(metrics, list):
        tree["evaluate"]["metrics"] = tuple(metrics)
    if isinstance(tree.get("resume_ignore"), list):
        tree["resume_ignore"] = tuple(tree["resume_ignore"])
    recipe = _whole(check, {**tree, "plugins": merged.plugin_files})
    if recipe is not None:
        _together(check, recipe)
    if lines := check.lines():
        raise RecipeError(*lines)
    assert recipe is not None
    recipe._origins = {dotted(key): where for key, where in merged.origins.items()}
    recipe._chains = {key: tuple(chain) for key, chain in merged.chains.items()}
    swapped = [
        f"{new.where}: {new.kind}/{new.name} in place of the {old.origin} one ({old.where})"
        for new, old in replaced(merged.plugin_files)
    ]
    recipe._notices = (*merged.notices, *swapped)
    recipe._path = path
    return recipe

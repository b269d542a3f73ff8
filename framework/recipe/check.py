"""Checks a merged recipe against the schema and the plugins' signatures, and reports all problems at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from framework.recipe.fit import mirrored_sides_problems, misfits
from framework.recipe.merge import Merged, expand_home, origin, resolve, slots, value_at
from framework.recipe.monitor import EXAMPLE, monitor_problems
from framework.recipe.saved import keys_in
from framework.recipe.schema import NO_TOPICS, SLOTS, Recipe, Section, WeightSchedule, section_in
from framework.recipe.score_names import metric_of, reward_problem
from framework.recipe.source import Found, Key, RecipeError, dotted, is_within, renamed_key, unknown_key
from framework.registry import KINDS, Plugin, PluginError, catalogue, did_you_mean, find, replaced, short
from framework.registry.signature import (
    BY_DECODER,
    COPIES,
    RESERVED,
    class_flag,
    class_texts,
    injected_params,
    keys_of,
    model_of,
)
from framework.runtime.errors import Problem

BY_NAMES: Key = ("losses",)  # its keys are names of losses, all with the same section
UNREADABLE = {"name": "?"}  # replaces a block with a problem, so that the rest can be checked
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_unicode": "a text without unpaired surrogates",
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
CODE_OF = {
    **dict.fromkeys(("greater_than", "greater_than_equal", "less_than", "less_than_equal"), "out-of-range"),
    **dict.fromkeys(("finite_number", "too_short", "too_long"), "out-of-range"),
    "literal_error": "unknown-name",
    "string_pattern_mismatch": "wrong-format",
    "file_form": "wrong-format",
}  # of any other error: wrong-type
FIRST_CODES = ("out-of-range", "wrong-type", "wrong-format", "unknown-name")  # of a union, the first that occurs


@dataclass
class Check:
    merged: Merged
    name: str  # of the recipe file, the place of problems without a position
    found: list[Found] = field(default_factory=list)
    plugins: dict[Key, Plugin] = field(default_factory=dict)

    def note(self, key: Key, code: str, found: str, *, expected: str = "", hint: str = "") -> None:
        self.found.append((key, Problem(code, found, expected=expected, hint=hint)))

    def problems(self) -> list[Problem]:
        """All problems, each with its position and key."""
        placed = []
        for key, problem in self.found:
            where = origin(self.merged, key, self.name)
            is_override = where.startswith("override: ")
            names_key = is_override and where.removeprefix("override: ").partition("=")[0].strip() == dotted(key)
            placed.append(problem.at(f"{where}: {dotted(key)}" if key and not names_key else where))
        return [*self.merged.problems, *placed]


def as_written(value: Any) -> str:
    """A value as its author wrote it."""
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, (dict, list)) and len(repr(value)) > 60:
        return "a list" if isinstance(value, list) else f"a mapping of {', '.join(map(str, value))}"
    return json.dumps(value, ensure_ascii=False, default=str)


def is_quoted_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


def explain(error: ValidationError, tree: Any, base: Key, known: Callable[[Key], list[str]]) -> Iterable[Found]:
    """The errors of pydantic as problems, one per place, however many types a union has.

    Args:
        tree: the validated value.
        base: its key in the recipe.
        known: returns the known keys of a place.
    """
    expected: dict[Key, dict[str, str]] = {}  # by place: text -> code
    for item in error.errors(include_url=False):
        place: Key = ()
        for part in item["loc"]:
            try:
                value_at(tree, (*place, part))
            except KeyError:
                continue  # the name of a union's member, not a key
            place = (*place, part)
        if item["type"] == "missing":
            yield (*base, *place, item["loc"][-1]), Problem("missing-key", "is missing")
        elif item["type"] == "extra_forbidden":
            yield (*base, *place), unknown_key((*base, *place), known(place[:-1]))
        elif item["type"] == "literal_error" and item["loc"][-1] == "[key]":
            yield (*base, *place), unknown_key((*base, *place), re.findall(r"'([^']+)'", item["ctx"]["expected"]))
        else:
            limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in item.get("ctx", {}).items()}
            text = EXPECTED[item["type"]].format(**limits) if item["type"] in EXPECTED else item["msg"]
            expected.setdefault(place, {}).setdefault(text, CODE_OF.get(item["type"], "wrong-type"))
    for place, texts in expected.items():
        value, hint = value_at(tree, place), ""
        if is_quoted_number(value) and any("number" in text or "at " in text for text in texts):
            hint = "Remove the quotes."
        elif isinstance(value, str):
            options = [word for text in texts for word in text.replace(" or ", ", ").split(", ") if word[:1] == "'"]
            hint = did_you_mean(value, [word.strip("'") for word in options]).strip()
        code = next(code for code in FIRST_CODES if code in texts.values())
        yield (*base, *place), Problem(code, f"found {as_written(value)}", expected=" or ".join(texts), hint=hint)


def _fields(place: Key) -> list[str]:
    """The keys that the schema has at a place."""
    model = _section(place)
    return [] if model is None else list(model.field_names())


def _section(place: Key) -> type[Section] | None:
    """The schema's section at a place; None if it is a value."""
    model: type[Section] | None = Recipe
    for part in place if place[:1] != BY_NAMES else (*BY_NAMES, *place[2:]):
        names = {} if model is None else model.field_names()
        model = section_in(model.model_fields[names[str(part)]].annotation) if model and part in names else None
    return model


def _expected(place: Key) -> str:
    """What the schema expects at a place."""
    home = _section(place[:-1])
    if _section(place) is not None or home is None or place[-1] not in home.field_names():
        fields = [] if place == BY_NAMES else _fields(place)
        return f"a mapping of {', '.join(fields) or 'names'}"
    try:
        expected: Any = home.model_fields[home.field_names()[str(place[-1])]].annotation
        TypeAdapter(expected).validate_python(object())
    except ValidationError as error:
        return " or ".join(dict.fromkeys(EXPECTED.get(item["type"], item["msg"]) for item in error.errors()))
    return "a value"


def _schema_keys(place: Key) -> list[str]:
    return [name for name in _fields(place) if not (place == () and name == "plugins")] + (
        ["_base_", "plugins"] if place == () else []
    )


def _names(check: Check, kind: str) -> str:
    return f"Known: {', '.join(sorted(n for k, n in catalogue(check.merged.plugin_files) if k == kind))}"


def _block(check: Check, key: Key, kind: str, block: Any) -> Any:
    """Checks one plugin's block and returns it in the form of the schema."""
    if block is None and key == ("data", "augment"):
        return None
    if not isinstance(block, dict):
        example = "weight: 1.0" if kind == "loss" else "name: ..."
        article = "an" if kind[0] in "aeo" else "a"
        check.note(key, "wrong-type", f"found {as_written(block)}", expected=f"{article} {kind}: {{{example}}}")
        return dict(UNREADABLE)
    reserved = RESERVED.get(kind, frozenset())
    fields = {name: value for name, value in block.items() if name in reserved}
    keys = {name: value for name, value in block.items() if name not in reserved | {"name"}}
    if kind == "loss":
        if "name" in block:
            check.note((*key, "name"), "unknown-key", "a loss is named by its key in losses", hint="Delete name.")
        name: Any = key[-1]
    else:
        name = block.get("name")
    if not isinstance(name, str):
        if "name" in block:
            check.note(
                (*key, "name"), "wrong-type", f"found {as_written(name)}", expected="a text", hint=_names(check, kind)
            )
        else:
            check.note((*key, "name"), "missing-key", "is missing", hint=_names(check, kind))
        return {**UNREADABLE, **fields}
    if kind == "distiller" and name == NO_TOPICS:
        for extra in keys:
            check.note((*key, extra), "unknown-key", "the distiller 'none' has no keys")
        return {"name": name}
    try:
        plugin = find(kind, name, check.merged.plugin_files)
        model = model_of(plugin)
    except PluginError as error:
        at = key if kind == "loss" else (*key, "name")
        for problem in error.problems:
            if kind == "distiller" and problem.code == "unknown-name":
                problem = replace(problem, hint=f"{problem.hint}, {NO_TOPICS}")
            check.found.append((at, problem))
        return {"name": name, **fields}
    check.plugins[key] = plugin
    return {"name": name, "keys": _keys(check, key, keys, plugin, model), **fields}


def _keys(check: Check, key: Key, keys: dict[str, Any], plugin: Plugin, model: type[BaseModel]) -> dict[str, Any]:
    """Checks one plugin's own keys. Returns all of them, with defaults; if some have problems, the others."""
    for injected in [n for n in keys if n in KINDS[plugin.kind].injected_params]:
        check.note((*key, injected), "unknown-key", "the run sets this value", hint="Delete it.")
        del keys[injected]
    try:
        # As JSON: strict about types, yet a list may be a tuple.
        return model.model_validate_json(json.dumps(keys), strict=True).model_dump(by_alias=True)
    except ValidationError as error:
        types = {known.name: known.type_text for known in keys_of(plugin)}
        names = [*sorted(RESERVED.get(plugin.kind, ())), *types]
        wrong = set()
        for place, problem in explain(error, keys, key, lambda place: names if place == () else []):
            if problem.code == "missing-key" and place[-1] in types:
                problem = replace(problem, expected=types[str(place[-1])])
            check.found.append((place, problem))
            wrong.add(place[len(key)])
    return {name: value for name, value in keys.items() if name not in wrong}


def _validate(check: Check, tree: dict[str, Any]) -> Recipe | None:
    try:
        return Recipe.model_validate(tree, strict=True)
    except ValidationError as error:
        known = {key for key, _ in check.found}
        for place, problem in explain(error, tree, (), _schema_keys):
            if any(place[: len(key)] == key for key in known):
                continue
            if problem.code == "missing-key" and place in SLOTS:
                problem = replace(problem, expected="{name: ...}", hint=_names(check, SLOTS[place]))
            elif problem.code == "missing-key":
                problem = replace(problem, expected=_expected(place))
            elif place == ("evaluate", "monitor"):
                expected = problem.expected.replace("a text", f"val/<score>, or several with their weights: {EXAMPLE}")
                problem = replace(problem, expected=expected)
            elif problem.code == "unknown-key":
                homes = [s for s in Recipe.model_fields if place[-1] in _fields((s,))]
                problem = replace(problem, hint=f"It belongs in {' or '.join(homes)}.") if homes else problem
            check.found.append((place, problem))
    return None


def _check_combinations(check: Check, recipe: Recipe) -> None:
    """Checks keys against each other."""
    if not recipe.active_losses:
        check.note(("losses",), "nothing-to-train", "no loss has a weight above 0")
    for name, loss in recipe.losses.items():
        weight = loss.weight
        if isinstance(weight, WeightSchedule) and weight.begin > weight.end:
            expected = f"at least begin = {weight.begin:g}"
            check.note(("losses", name, "weight", "end"), "out-of-range", f"found {weight.end:g}", expected=expected)
    check.found += misfits(check.plugins, recipe.has_topics, set(recipe.active_losses), check.merged.plugin_files)
    train = recipe.train
    if isinstance(train.micro_batch_size, int) and train.batch_size % train.micro_batch_size:
        divisors = [n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0]
        check.note(
            ("train", "micro_batch_size"), "does-not-divide", f"found {train.micro_batch_size}",
            expected=f"a divisor of train.batch_size = {train.batch_size}: {', '.join(map(str, divisors))}",
        )  # fmt: skip
    names = [metric.name for metric in recipe.evaluate.metrics]
    for index, name in enumerate(names):
        if name in names[:index] and name != UNREADABLE["name"]:
            check.note(("evaluate", "metrics", index), "duplicate-name", f"'{name}' occurs twice")
    for index, name in enumerate(recipe.run.trackers):
        if name in recipe.run.trackers[:index]:
            check.note(("run", "trackers", index), "duplicate-name", f"'{name}' occurs twice")
    _check_distributed(check, recipe)
    _check_losses(check, recipe)
    _check_parts(check, recipe)
    if recipe.data.augment is not None:
        check.found += mirrored_sides_problems(check.plugins, recipe.data.augment.keys)
    elif recipe.evaluate.augmented_copies:
        check.note(
            ("evaluate", "augmented_copies"), "ignored-setting", "data.augment is null",
            hint="Set data.augment, or evaluate.augmented_copies=0.",
        )  # fmt: skip
    if recipe.data.cache_features:
        _check_cached_features(check, recipe)
    if not recipe.data.cache_images:
        _check_uncached_images(check, recipe)
    known = keys_in(recipe)
    for index, name in enumerate(recipe.resume_ignore):
        if name not in known:
            problem = Problem(
                "unknown-key",
                f"found {name!r}",
                expected="a key of this recipe",
                hint=did_you_mean(name, known).strip(),
            )
            check.found.append((("resume_ignore", index), renamed_key((name,)) or problem))
    check.found += monitor_problems(recipe, check.plugins)


def _check_distributed(check: Check, recipe: Recipe) -> None:
    """Settings that the strategy would ignore or does not support."""
    settings, strategy = recipe.distributed, recipe.distributed.strategy
    is_deepspeed = strategy.startswith("zero")

    def only_for(key: Key, found: str, strategies: str) -> None:
        check.note(key, "ignored-setting", f"{found} is for {strategies}, and distributed.strategy is {strategy}")

    if settings.offload == "optimizer" and not is_deepspeed:
        only_for(("distributed", "offload"), "'optimizer'", "zero1, zero2 and zero3")
    if settings.offload == "all" and strategy not in ("zero3", "fsdp"):
        only_for(("distributed", "offload"), "'all'", "zero3 and fsdp")
    if settings.deepspeed_config is not None and not is_deepspeed:
        only_for(("distributed", "deepspeed_config"), "this key", "zero1, zero2 and zero3")
    if recipe.train.clip_by == "value" and is_deepspeed:
        check.note(
            ("train", "clip_by"), "unsupported", f"DeepSpeed ({strategy}) clips norms only",
            hint="Set train.clip_by=norm, or distributed.strategy to ddp or fsdp.",
        )  # fmt: skip
    if recipe.train.clip_by == "value" and recipe.train.max_grad_norm is None:
        check.note(("train", "clip_by"), "ignored-setting", "found 'value', but train.max_grad_norm is null")
    if recipe.train.compile and strategy not in ("auto", "ddp"):
        check.note(
            ("train", "compile"), "unsupported", f"torch.compile is for ddp, and distributed.strategy is {strategy}",
            expected="false",
        )  # fmt: skip
    if recipe.train.precision == "fp16" and strategy not in ("auto", "ddp"):
        check.note(
            ("train", "precision"), "unsupported", f"fp16 is for ddp, and distributed.strategy is {strategy}",
            expected="bf16 or fp32",
        )  # fmt: skip


def _check_cached_features(check: Check, recipe: Recipe) -> None:
    """What would change the maps that data.cache_features computes before the first step."""
    if recipe.data.augment is not None:
        check.note(
            ("data", "cache_features"), "conflicting-settings", f"data.augment ({recipe.data.augment.name}) changes "
            "the images of each epoch, and the feature maps are computed once",
            hint="Set data.augment=null or data.cache_features=false.",
        )  # fmt: skip
    if recipe.init_from is not None and "encoder" not in recipe.init_exclude:
        check.note(
            ("data", "cache_features"), "conflicting-settings", "init_from changes the encoder after its feature maps "
            "are computed",
            hint="Set init_exclude=[encoder] or data.cache_features=false.",
        )  # fmt: skip


def _check_uncached_images(check: Check, recipe: Recipe) -> None:
    """Settings that need every image before the first step."""
    if recipe.data.cache_features:
        check.note(
            ("data", "cache_images"), "conflicting-settings", "false, and data.cache_features computes feature maps "
            "from the cached images",
            hint="Set one of the two to the other value.",
        )  # fmt: skip
    if recipe.data.on_broken == "skip":
        check.note(
            ("data", "cache_images"), "conflicting-settings", "false, and data.on_broken: skip would have to decode "
            "every image before training",
            hint="Set data.on_broken: stop; `data check` and `data shard` find the exams that do not load.",
        )  # fmt: skip


def _check_losses(check: Check, recipe: Recipe) -> None:
    """What losses require of other keys, beside the outputs of other plugins."""
    strategy, chosen = recipe.distributed.strategy, [metric.name for metric in recipe.evaluate.metrics]
    for name, loss in recipe.active_losses.items():
        key: Key = ("losses", name)
        plugin = check.plugins.get(key)
        if plugin is None:
            continue  # unknown, which is reported already
        if "decoder" in (class_texts(plugin, "needs") or ()) and strategy in ("zero3", "fsdp"):
            check.note(
                key, "unsupported", f"generates reports, which needs whole weights; {strategy} shards them",
                hint="Set distributed.strategy to ddp, zero1 or zero2.",
            )  # fmt: skip
        if class_flag(plugin, "signed") and recipe.train.weighting == "uncertainty":
            check.note(
                ("train", "weighting"), "conflicting-settings",
                f"'uncertainty' needs terms that are never negative, and losses.{name} can be",
                hint="Set train.weighting=fixed.",
            )  # fmt: skip
        if COPIES in (class_texts(plugin, "needs") or ()) and recipe.data.augment is None:
            check.note(
                key, "missing-input", "compares two augmentations of the images, and data.augment is null",
                hint="Set data.augment.",
            )  # fmt: skip
        if "make_reward" not in injected_params(plugin):
            continue
        if any(place[:3] == (*key, "reward") for place, _ in check.found):
            continue  # of another type, which is reported already
        reward = loss.keys.get("reward", {})
        if not reward:
            check.note((*key, "reward"), "missing-key", "no score has a weight", expected="one, such as {cider: 1.0}")
        for score, weight in reward.items():
            try:
                metric = metric_of(score, catalogue(recipe.plugin_files), chosen)
            except RecipeError as error:
                check.found += [((*key, "reward", score), problem) for problem in error.problems]
                continue
            if problem := reward_problem(score, weight, metric):
                check.found.append(((*key, "reward", score), problem))
    _check_decoder_trains(check, recipe)


def _check_decoder_trains(check: Check, recipe: Recipe) -> None:
    """A trainable decoder without a gradient, which makes DDP fail on several processes."""
    plugins = [check.plugins.get(("losses", name)) for name in recipe.active_losses]
    needed = [class_texts(plugin, "needs") if plugin else None for plugin in plugins]
    if not needed or any(names is None or BY_DECODER & set(names) for names in needed):
        return  # it trains; or what the losses need is unknown, which is reported already
    if not recipe.freezes_decoder:
        check.note(
            ("losses",), "nothing-to-train", f"no loss trains the decoder ({', '.join(recipe.active_losses)})",
            hint="Set train.freeze=[decoder] to train the encoder alone, or add next_token.",
        )  # fmt: skip


def _check_parts(check: Check, recipe: Recipe) -> None:
    """Names of parts that no model has. Parts inside the encoder and decoder are checked once the model is built."""
    model, losses = ["encoder", "decoder"], [f"losses.{name}" for name in recipe.active_losses]
    losses += ["weighting"] if recipe.train.weighting == "uncertainty" else []
    prefixes: dict[Key, tuple[str, list[str]]] = {
        **{("optimizer", "group_lrs", prefix): (prefix, model + losses) for prefix in recipe.optimizer.group_lrs},
        **{("train", "freeze", n): (prefix, model + losses) for n, prefix in enumerate(recipe.train.freeze)},
        **{("init_exclude", n): (prefix, model) for n, prefix in enumerate(recipe.init_exclude)},
    }
    for key, (prefix, known) in prefixes.items():
        if not any(is_within(prefix, part) for part in known):
            hint = f"{did_you_mean(prefix, known)} Known: {', '.join(known)} and their parts".strip()
            check.note(key, "unknown-name", f"the model has no part '{prefix}'", hint=hint)
    if recipe.init_exclude and recipe.init_from is None:
        check.note(
            ("init_exclude",), "ignored-setting", "init_from is null", hint="Set init_from, or delete init_exclude."
        )
    if recipe.optimizer.encoder_lr is not None and "encoder" in recipe.optimizer.group_lrs:
        check.note(
            ("optimizer", "group_lrs", "encoder"), "conflicting-settings", "optimizer.encoder_lr sets the same rate",
            hint="Delete one of the two.",
        )  # fmt: skip


def check_recipe(merged: Merged, path: Path) -> Recipe:
    """The recipe of a merged tree. Raises RecipeError with all problems."""
    check = Check(merged, short(path))
    check.found += resolve(merged)
    check.found += expand_home(merged)
    if check.found or not all(file.is_file() for file in merged.plugin_files):
        raise RecipeError.of(check.problems())  # other checks would report unresolved values and unread plugins
    try:
        catalogue(merged.plugin_files)
    except PluginError as error:
        raise RecipeError.of(error.problems) from None
    tree: Any = deepcopy(merged.tree)
    for key, kind, block in list(slots(merged.tree)):
        value_at(tree, key[:-1])[key[-1]] = _block(check, key, kind, block)
    metrics = tree["evaluate"].get("metrics") if isinstance(tree.get("evaluate"), dict) else None
    if isinstance(metrics, list):
        tree["evaluate"]["metrics"] = tuple(metrics)
    if isinstance(tree.get("resume_ignore"), list):
        tree["resume_ignore"] = tuple(tree["resume_ignore"])
    recipe = _validate(check, {**tree, "plugins": merged.plugin_files})
    if recipe is not None:
        _check_combinations(check, recipe)
    if problems := check.problems():
        raise RecipeError.of(problems)
    assert recipe is not None
    recipe._origins = {dotted(key): where for key, where in merged.origins.items()}
    recipe._chains = {key: tuple(chain) for key, chain in merged.chains.items()}
    replacements = [
        f"{new.where}: {new.kind}/{new.name} replaces the {old.origin} one ({old.where})"
        for new, old in replaced(merged.plugin_files)
    ]
    recipe._notices = (*merged.notices, *replacements)
    recipe._path = path
    return recipe

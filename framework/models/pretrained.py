"""Pretrained transformers models: locating and loading weights, checking configurations, LoRA."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.models.size import TooLarge
from framework.registry.source import did_you_mean
from framework.runtime.errors import UserError, first_line
from framework.runtime.memory import is_beyond_memory

# What is downloaded from the model hub: no file that could carry code.
SAFE = ["*.json", "*.txt", "*.model", "*.safetensors"]
EXPECTED_FOLDER = "a folder with config.json and model.safetensors, or a name on the model hub"
# Mean and standard deviation of red, green and blue in ImageNet, by which its networks standardize images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST = 10_000_000  # above any size in a configuration
_skip_weights: ContextVar[bool] = ContextVar("skip_weights", default=False)


@contextmanager
def skip_weight_loading() -> Iterator[None]:
    """Inside, pretrained parts are built with random weights: used for size estimates, downloads no weights."""
    token = _skip_weights.set(True)
    try:
        yield
    finally:
        _skip_weights.reset(token)


def skips_weight_loading() -> bool:
    """Whether `skip_weight_loading` is active."""
    return _skip_weights.get()


def weights_folder(weights: str, key: str) -> Path:
    """The local folder of pretrained weights; downloads a name on the model hub if it is not cached.

    Args:
        key: the recipe key of `weights`, for messages.

    Raises:
        UserError: `no-such-file` if there is no such folder and the hub does not have it, `wrong-format` if it holds
            an adapter.
    """
    folder = _local_or_downloaded(weights, key)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            "wrong-format",
            f"{weights} holds an adapter",
            place=key,
            expected="full weights",
            hint="Merge the adapter into its base model.",
        )
    return folder


def _local_or_downloaded(weights: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    local = Path(weights).expanduser()
    if local.is_dir():
        return local
    if weights[:1] in ("", ".", "/", "~") or local.exists():
        raise UserError("no-such-file", f"no such folder: {weights}", place=key, expected=EXPECTED_FOLDER)
    patterns = [pattern for pattern in SAFE if pattern != "*.safetensors"] if _skip_weights.get() else SAFE
    try:
        return Path(snapshot_download(weights, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise UserError(
            "no-such-file",
            f"'{weights}' is not a folder, and the model hub does not provide it ({first_line(error)})",
            place=key,
            expected=EXPECTED_FOLDER,
        ) from error


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def read_config(folder: Path, key: str) -> Any:
    """The transformers configuration in a folder of weights."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _does_not_load(folder, key, error) from error


def new_config(architecture: str, values: dict[str, Any], known: dict[str, str], key: str) -> Any:
    """A transformers configuration from a recipe's `architecture` and `config`.

    Args:
        known: architectures that have a class of the wanted kind.
        key: recipe key of the part.

    Raises:
        UserError: `unknown-name` of the architecture, `unknown-key` of `config`, or `out-of-range` if the architecture
            rejects the values.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    require_architecture(architecture, known, CONFIG_MAPPING_NAMES, key)
    cls = _config_class(architecture)
    _require_keys(cls(), values, key)
    try:
        return cls(**values)
    except Exception as error:  # whatever its checks raise
        raise UserError(
            "out-of-range", f"{architecture} rejects these values ({first_line(error)})", place=f"{key}.config"
        ) from error


def require_architecture(architecture: str, known: dict[str, str], every: Iterable[str], key: str) -> None:
    """Raises `unknown-name` or `unsupported` if an architecture of transformers has no class of the wanted kind."""
    if architecture in known:
        return
    names = sorted(known)
    listed = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    exists = architecture in every
    raise UserError(
        "unsupported" if exists else "unknown-name",
        f"'{architecture}' has no class of this kind in transformers"
        if exists
        else f"Unknown architecture '{architecture}'",
        place=f"{key}.architecture",
        hint=f"{did_you_mean(architecture, known)} Known: {listed}".strip(),
    )


def update_config(config: Any, values: dict[str, Any], key: str) -> Any:
    """Sets values of a recipe in a folder's configuration; they must not change the shapes of weights."""
    _require_keys(config, values, key)
    config.update(values)
    return config


def _require_keys(config: Any, values: dict[str, Any], key: str) -> None:
    """Checks names, and that no number is too large: some configurations make lists of that length."""
    known = {*config.to_dict(), *getattr(config, "attribute_map", {})}
    for name, value in values.items():
        if name not in known:
            raise UserError(
                "unknown-key",
                f"unknown key '{name}' of {config.model_type}",
                place=f"{key}.config.{name}",
                hint=f"{did_you_mean(name, known)} Known: {', '.join(sorted(known))}".strip(),
            )
        if (largest := max(_whole_numbers(value), default=0)) > MOST:
            place = f"{key}.config.{name}"
            raise UserError("out-of-range", f"found {largest}", place=place, expected=f"at most {MOST:,}")


def _whole_numbers(value: Any) -> Iterator[int]:
    """Every integer in a value of JSON."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(item)


def config_from_dict(hf_config: dict[str, Any]) -> Any:
    """The transformers configuration saved in a part's `hf_config`."""
    values = dict(hf_config["config"])
    return _config_class(values["model_type"]).from_dict(values)


def config_to_dict(config: Any) -> dict[str, Any]:
    """A transformers configuration as plain JSON values."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


def _config_class(architecture: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[architecture]


def new_model(cls: Any, config: Any, key: str) -> Any:
    """A transformers model with random weights, in fp32."""
    try:
        return cls(config).float()
    except Exception as error:  # whatever the architecture raises
        if isinstance(error, TooLarge) or is_beyond_memory(error):
            raise
        raise UserError(
            "out-of-range",
            f"{config.model_type} cannot be built from it ({type(error).__name__}: {first_line(error)})",
            place=f"{key}.config",
        ) from error


def load_pretrained(cls: Any, folder: Path, config: Any, key: str) -> tuple[Any, list[str]]:
    """A model with a folder's weights in fp32, and the names of its weights that the folder lacks.

    Reads only safetensors and runs no code of the folder.

    Raises:
        UserError: `no-such-file` or `wrong-format` if the weights do not load, `does-not-fit` if the configuration has
            fewer layers than the folder.
    """
    if _skip_weights.get():
        return new_model(cls, config, key), []
    if not weight_files(folder):
        raise UserError(
            "no-such-file",
            f"no *.safetensors in {folder}",
            place=f"{key}.weights",
            hint="Other files are not read, since they could carry code.",
        )
    try:
        with _quiet_transformers():
            model, info = cls.from_pretrained(
                str(folder), config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # of transformers, safetensors, or the architecture
        raise _does_not_load(folder, f"{key}.weights", error) from error
    if extra := _unused_layers(model, info["unexpected_keys"]):
        raise UserError(
            "does-not-fit",
            f"{folder} has layers that the configuration leaves out: {', '.join(extra[:3])}",
            place=f"{key}.weights",
            hint=f"Remove the number of layers from {key}.config.",
        )
    return model.float(), sorted(info["missing_keys"])


def _unused_layers(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Names of numbered layers among the unexpected weights that would extend a list of the model.

    Heads for other tasks are unexpected too, but leaving those out is right.
    """
    prefix = f"{model.base_model_prefix}."  # optional in a folder's names
    lists = {name.removeprefix(prefix): part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    lengths = {f"{start}{name}": len(part) for name, part in lists.items() for start in ("", prefix)}
    layers = set()
    for weight in unexpected:
        names = weight.split(".")
        for place, number in enumerate(names):
            length = lengths.get(".".join(names[:place]))
            if length is not None and number.isdecimal() and int(number) >= length:
                layers.add(".".join(names[: place + 1]))
    return sorted(layers)


def require_no_missing_weights(missing: list[str], folder: Path, key: str) -> None:
    if missing:
        raise UserError(
            "does-not-fit",
            f"{folder} lacks {len(missing)} weights of the architecture, first {', '.join(missing[:3])}",
            place=f"{key}.weights",
        )


def load_tokenizer(folder: Path, key: str) -> Any:
    """The transformers tokenizer beside weights."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # of transformers or tokenizers, which raise their own
        raise UserError(
            "wrong-format", f"the tokenizer in {folder} does not load ({first_line(error)})", place=key
        ) from error


def load_text_encoder(folder: Path, config: Any, key: str) -> tuple[Any, Any]:
    """Tokenizer and frozen model of a text encoder such as BERT. The caller has checked that it is one.

    Raises:
        UserError: one of them does not load, or weights are missing.
    """
    from transformers import AutoModel

    # Weights that the folder lacks are drawn from the global generator, whose state belongs to the run.
    with torch.random.fork_rng(devices=[]):
        model, missing = load_pretrained(AutoModel, folder, config, key)
    # Many encoders leave out BERT's pooler, a head for another task that is not used here.
    require_no_missing_weights([name for name in missing if not name.startswith("pooler.")], folder, key)
    return load_tokenizer(folder, key), model.eval().requires_grad_(False)


def max_positions(model: Any) -> int:
    """Maximum number of tokens of a text model; 2**30 if its configuration has no limit."""
    return int(getattr(model.config, "max_position_embeddings", 1 << 30)) - first_position(model)


def first_position(model: Any) -> int:
    """Position id of the first token: RoBERTa and its descendants count from padding_idx + 1, others from 0."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def convert_to_grayscale(model: nn.Module, key: str) -> None:
    """Makes a model of RGB images take grayscale ones: sums the first filters over the colours, which equals three
    identical channels.

    Raises:
        UserError: `unsupported` if not exactly one layer reads the image.
    """
    stems = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.in_channels == 3]
    if len(stems) != 1:
        raise UserError(
            "unsupported", f"{len(stems)} layers read the image", place=f"{key}.weights", hint="Set data.channels: 3."
        )
    (stem,) = stems
    stem.weight = nn.Parameter(stem.weight.detach().sum(1, keepdim=True))
    stem.in_channels = 1
    for part in model.modules():
        if getattr(part, "num_channels", None) == 3:
            part.num_channels = 1  # type: ignore[assignment]
    model.config.num_channels = 1  # type: ignore[union-attr]


def require_one_source(
    key: str,
    architecture: str | None,
    weights: str | None,
    hf_config: dict[str, Any] | None,
    config: dict[str, Any],
    derived: Sequence[str],
    source: str,
) -> None:
    """Checks that a part is built from exactly one of architecture, weights and hf_config.

    Args:
        derived: configuration values that follow from `source` and may not be set in the recipe.

    Raises:
        UserError: `conflicting-settings` if architecture and weights are both set or one of `derived` is,
            `missing-key` if neither is.
    """
    if hf_config is None and (architecture is None) == (weights is None):
        raise UserError(
            "conflicting-settings" if weights else "missing-key",
            f"found {'both' if weights else 'neither'} of architecture and weights",
            place=key,
            expected="exactly one",
        )
    for name in derived:
        if name in config:
            raise UserError(
                "conflicting-settings",
                f"'{name}' follows from {source}",
                place=f"{key}.config.{name}",
                hint="Remove it.",
            )


def add_lora(model: nn.Module, rank: int, alpha: int, dropout: float, targets: list[str] | None, key: str) -> nn.Module:
    """Freezes a model and adds trainable low-rank matrices to some of its linear layers.

    Source:
        Hu et al. 2021, arXiv 2106.09685, equation 3; by peft.

    Raises:
        UserError: `missing-package` without peft, `unknown-name` if no linear layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(
            "missing-package", "LoRA needs peft", place=key, hint="Run: pip install 'sonoscribe[lora]'"
        ) from None
    for weight in model.parameters():
        weight.requires_grad_(False)
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    try:
        with _quiet_transformers():
            return inject_adapter_in_model(settings, model)
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)}
        raise UserError(
            "unknown-name",
            f"found {targets} ({first_line(error)})",
            place=f"{key}.lora_targets",
            expected=f"names of linear layers: {', '.join(sorted(linear))}",
        ) from error


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"  # GPT-2's


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silences progress bars and notices of transformers; we raise errors ourselves."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _does_not_load(folder: Path, key: str, error: Exception) -> UserError:
    return UserError(
        "wrong-format",
        f"'{folder}' does not load ({first_line(error)})",
        place=key,
        expected="a folder with config.json and model.safetensors, as save_pretrained of transformers writes it",
    )

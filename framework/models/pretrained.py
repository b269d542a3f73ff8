"""Models of transformers that others have trained: where they lie, what their configuration may be told, LoRA."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.registry.source import did_you_mean
from framework.runtime.errors import first_line

# What is read of a folder on the model hub: nothing that could carry code.
SAFE = ["*.json", "*.txt", "*.model", "*.safetensors"]
# Mean and standard deviation of red, green and blue, by which networks for ImageNet standardize images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_unread: ContextVar[bool] = ContextVar("unread", default=False)


@contextmanager
def values_unread() -> Iterator[None]:
    """Within it, parts are built in their right shapes with random values: what is only measured fetches no weights."""
    token = _unread.set(True)
    try:
        yield
    finally:
        _unread.reset(token)


def only_measured() -> bool:
    """Whether `values_unread` is in force."""
    return _unread.get()


def folder_of(weights: str, key: str) -> Path:
    """The folder of pretrained weights: a local one, or that of a name on the model hub, fetched if it is not here yet.

    Raises:
        ValueError: there is no such folder, or the hub does not give it; or it holds an adapter.
    """
    folder = _fetched_folder(weights, key)
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{key}: {weights} holds an adapter; expected whole weights (merge it into its model)")
    return folder


def _fetched_folder(weights: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    local = Path(weights).expanduser()
    if local.is_dir():
        return local
    if weights[:1] in ("", ".", "/", "~") or local.exists():
        raise ValueError(
            f"{key}: no such folder: {weights}. Expected one with config.json and model.safetensors, or a name on the "
            "model hub"
        )
    wanted = [pattern for pattern in SAFE if pattern != "*.safetensors"] if _unread.get() else SAFE
    try:
        return Path(snapshot_download(weights, allow_patterns=wanted))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"{key}: '{weights}' is no folder, and the model hub does not give it ({first_line(error)}). Expected a "
            "folder with config.json and model.safetensors, or a name on the model hub"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def config_of(folder: Path, key: str) -> Any:
    """What a folder of weights says of their shape, as a transformers configuration."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unfit(folder, key, error) from error


def new_config(architecture: str, values: dict[str, Any], known: dict[str, str], key: str) -> Any:
    """A transformers configuration from a recipe's `architecture` and `config`.

    Args:
        known: architectures that have a class of the kind that is wanted.
        key: of the part in the recipe.

    Raises:
        ValueError: no such architecture or key, or values that do not go together.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as ALL

    require_known(architecture, known, ALL, key)
    cls = _class_of(architecture)
    _require_keys(cls(), values, key)
    try:
        return cls(**values)
    except Exception as error:  # whatever its checks raise
        raise ValueError(f"{key}.config: {architecture} refuses it ({first_line(error)})") from error


def require_known(architecture: str, known: dict[str, str], every: Any, key: str) -> None:
    """Raises ValueError where transformers has no such architecture, or not as what is wanted."""
    if architecture in known:
        return
    near = did_you_mean(architecture, known)
    if architecture in every:
        raise ValueError(
            f"{key}.architecture: '{architecture}' has no class of this kind in transformers.{near} "
            f"With one: {', '.join(sorted(known))}"
        )
    raise ValueError(f"{key}.architecture: Unknown architecture '{architecture}'.{near} Known: {_some(known)}")


def changed(config: Any, values: dict[str, Any], key: str) -> Any:
    """A folder's configuration with some values of a recipe in it, which must leave the shapes of weights alone."""
    _require_keys(config, values, key)
    config.update(values)
    return config


def _require_keys(config: Any, values: dict[str, Any], key: str) -> None:
    known = {*config.to_dict(), *getattr(config, "attribute_map", {})}
    for name in values:
        if name not in known:
            raise ValueError(
                f"{key}.config: unknown key '{name}' of {config.model_type}.{did_you_mean(name, known)} "
                f"Known: {', '.join(sorted(known))}"
            )


def config_from(hf_config: dict[str, Any]) -> Any:
    """The configuration that a blueprint was made of."""
    told = dict(hf_config["config"])
    return _class_of(told["model_type"]).from_dict(told)


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as values that JSON knows."""
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def _class_of(architecture: str) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[architecture]


def new_model(cls: Any, config: Any, key: str) -> Any:
    """A model of a transformers class with random weights, in fp32."""
    try:
        return cls(config).float()
    except Exception as error:  # whatever the architecture stumbles over
        raise ValueError(
            f"{key}.config: no {config.model_type} can be built of it ({type(error).__name__}: {first_line(error)})"
        ) from error


def read_model(cls: Any, folder: Path, config: Any, key: str) -> tuple[Any, list[str]]:
    """A model with a folder's weights, in fp32, and the names of its weights that are not there.

    Raises:
        ValueError: they do not load, or the configuration leaves some of their layers out. Only safetensors are read,
            and no code of the folder is run.
    """
    if _unread.get():
        return new_model(cls, config, key), []
    if not weight_files(folder):
        raise ValueError(f"{key}.weights: no *.safetensors in {folder}; files of other kinds could carry code")
    try:
        with _quietly():
            model, told = cls.from_pretrained(
                str(folder), config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # of transformers, safetensors, or the architecture
        raise _unfit(folder, f"{key}.weights", error) from error
    if cut := _layers_left_out(model, told["unexpected_keys"]):
        raise ValueError(
            f"{key}.weights: {folder} has layers that the configuration leaves out: {', '.join(cut[:3])}; take their "
            f"number out of {key}.config"
        )
    return model.float(), sorted(told["missing_keys"])


def _layers_left_out(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Names of numbered layers among unexpected weights that would go on a list of the model.

    Heads of other tasks are unexpected too, and rightly left out.
    """
    prefix = f"{model.base_model_prefix}."  # which a folder's names may have, or lack
    lists = {name.removeprefix(prefix): part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    lengths = {f"{start}{name}": len(part) for name, part in lists.items() for start in ("", prefix)}
    found = set()
    for weight in unexpected:
        names = weight.split(".")
        for place, number in enumerate(names):
            length = lengths.get(".".join(names[:place]))
            if length is not None and number.isdecimal() and int(number) >= length:
                found.add(".".join(names[: place + 1]))
    return sorted(found)


def require_all(missing: list[str], folder: Path, key: str) -> None:
    if missing:
        raise ValueError(
            f"{key}.weights: {folder} lacks {len(missing)} weights of the architecture, first {', '.join(missing[:3])}"
        )


def read_tokenizer(folder: Path, key: str) -> Any:
    """The tokenizer that lies beside weights, of transformers."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # of transformers or tokenizers, which raise their own
        raise ValueError(f"{key}: no tokenizer that loads in {folder} ({first_line(error)})") from error


def read_text_encoder(folder: Path, config: Any, key: str) -> tuple[Any, Any]:
    """The tokenizer and the frozen model of an encoder of text such as BERT; whether it is one, the caller has seen.

    Raises:
        ValueError: one of them does not load, or weights are missing.
    """
    from transformers import AutoModel

    # A part that the folder lacks is drawn from the global generator, whose state is the run's.
    with torch.random.fork_rng(devices=[]):
        model, missing = read_model(AutoModel, folder, config, key)
    # The pooler is BERT's head for another task, which many encoders leave out, and nobody here uses.
    require_all([name for name in missing if not name.startswith("pooler.")], folder, key)
    return read_tokenizer(folder, key), model.eval().requires_grad_(False)


def positions_of(model: Any) -> int:
    """The most pieces that a model of text has positions for; many, where it does not say."""
    return int(getattr(model.config, "max_position_embeddings", 1 << 30)) - first_position(model)


def first_position(model: Any) -> int:
    """The position of a text's first piece: RoBERTa and its heirs count from behind the padding's, others from 0."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def turn_grey(model: nn.Module, key: str) -> None:
    """Lets a model of colour images take grey ones: its first filters become the sum of those of the three colours,
    which is the same as three equal channels.

    Raises:
        ValueError: more or fewer layers than one take an image.
    """
    stems = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.in_channels == 3]
    if len(stems) != 1:
        raise ValueError(f"{key}.weights: {len(stems)} layers take an image; set data.channels: 3")
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
    ours: Sequence[str],
    of: str,
) -> None:
    """Holds the keys of a part to one another that say what it begins with.

    Args:
        ours: values of a configuration that the recipe has no say in, since they follow from what `of` names.

    Raises:
        ValueError: architecture and weights are both set, or neither is; or the recipe sets one of `ours`.
    """
    if hf_config is None and (architecture is None) == (weights is None):
        raise ValueError(f"{key}: set either architecture or weights; found {'both' if weights else 'neither'}")
    for name in ours:
        if name in config:
            raise ValueError(f"{key}.config: '{name}' follows from {of}; take it out")


def add_lora(model: nn.Module, rank: int, alpha: int, dropout: float, targets: list[str] | None, key: str) -> nn.Module:
    """Freezes a model, and adds trainable products of two narrow matrices to some of its linear maps.

    Source:
        Hu et al. 2021, arXiv 2106.09685, equation 3; by peft.

    Raises:
        ValueError: peft is not installed, or no linear map has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError(f"{key}: LoRA needs peft: pip install 'sonoscribe[lora]'") from None
    for weight in model.parameters():
        weight.requires_grad_(False)
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    try:
        with _quietly():
            return inject_adapter_in_model(settings, model)
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)}
        raise ValueError(
            f"{key}.lora_targets: found {targets}, expected names of linear maps, of: {', '.join(sorted(linear))} "
            f"({first_line(error)})"
        ) from error


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"  # as GPT-2 has them


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the bars and notices of transformers: what is wrong is raised, or told by us."""
    import warnings

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


def _unfit(folder: Path, key: str, error: Exception) -> ValueError:
    return ValueError(
        f"{key}: '{folder}' does not load ({first_line(error)}). Expected a folder with config.json and "
        "model.safetensors, as transformers saves one"
    )


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:40]) + (f" and {len(listed) - 40} more" if len(listed) > 40 else "")

"""What a recipe may say, beside the keys of plugins: sections, types, and every default, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    StringConstraints,
)

NO_TOPICS = "none"  # the distiller that finds none

# Where plugins stand in a recipe; `*` is every key, or every item of a list.
SLOTS: dict[tuple[str | int, ...], str] = {
    ("data", "dataset"): "dataset",
    ("data", "tokenizer"): "tokenizer",
    ("data", "augment"): "augment",
    ("distiller",): "distiller",
    ("model", "encoder"): "encoder",
    ("model", "decoder"): "decoder",
    ("losses", "*"): "loss",
    ("optimizer",): "optimizer",
    ("schedule",): "schedule",
    ("evaluate", "metrics", "*"): "metric",
}

# The plugins of a recipe that does not choose.
CHOICES: dict[str, Any] = {
    "data": {"tokenizer": {"name": "words"}},
    "distiller": {"name": NO_TOPICS},
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "cosine"},
    "evaluate": {"metrics": [{"name": "bleu"}, {"name": "rouge_l"}, {"name": "cider"}]},
}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Choice(Section):
    """A plugin by name, and all its keys, defaults filled in."""

    name: str
    keys: dict[str, Any] = Field(default_factory=dict)


class Loss(Choice):
    weight: NonNegativeFloat = 1.0  # 0 turns the term off: it is not built


class Optimizer(Choice):
    lr: PositiveFloat = 1e-3
    encoder_lr: NonNegativeFloat | None = None  # None: as lr; 0 freezes the encoder


class Data(Section):
    dataset: Choice
    image_size: Annotated[int, Field(ge=8, le=4096)] = 128  # px, of the squared image
    channels: Literal[1, 3] = 1
    tokenizer: Choice
    augment: Choice | None = None
    workers: NonNegativeInt = 0  # processes that load exams, of each rank
    cache: str = ".cache/sonoscribe"
    broken: Literal["stop", "skip"] = "stop"  # what an exam that cannot be read does to the run


class Model(Section):
    encoder: Choice
    decoder: Choice


class Train(Section):
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 16  # exams an update, over all processes
    micro_batch: PositiveInt | Literal["auto"] = "auto"  # exams that one process takes at a time
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    clip: PositiveFloat | None = 1.0  # largest gradient norm
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 9233
    early_stop: PositiveInt | None = None  # validations without a better monitor


class Distributed(Section):
    strategy: Literal["auto", "ddp"] = "auto"


class Evaluate(Section):
    metrics: tuple[Choice, ...]
    monitor: str = "val/bleu_4"
    every_epochs: PositiveInt = 1
    beam: PositiveInt = 1  # at the end, on val and test
    val_beam: PositiveInt = 1  # while training
    length_penalty: float = 1.0
    no_repeat: NonNegativeInt = 0  # length of the word sequences that may not come twice; 0: all may
    max_tokens: PositiveInt = 150  # of a report, begin and end included
    batch_size: PositiveInt = 32

    @property
    def monitored(self) -> str:
        """The name of the score that the kept model is chosen by, without its split."""
        return self.monitor.split("/", 1)[1]


class Checkpoint(Section):
    every_steps: PositiveInt | None = None  # beside the one at each epoch's end
    keep_last: PositiveInt = 2
    keep_best: NonNegativeInt = 1


class Run(Section):
    root: str = "runs"
    # "auto": time and hash. One folder name: no way out of the root.
    name: Annotated[str, StringConstraints(pattern=r"^\w[\w.+-]{0,99}$")] = "auto"


class Recipe(Section):
    """A whole run. Equal recipes train alike, wherever their values were written."""

    plugins: tuple[Path, ...] = ()
    data: Data
    distiller: Choice
    model: Model
    losses: dict[str, Loss]
    optimizer: Optimizer
    schedule: Choice
    train: Train = Train()
    distributed: Distributed = Distributed()
    evaluate: Evaluate
    checkpoint: Checkpoint = Checkpoint()
    run: Run = Run()
    resume: str = "never"  # never | auto | a folder of a run or checkpoint

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _chains: dict[tuple[str | int, ...], tuple[tuple[Any, str], ...]] = PrivateAttr(default_factory=dict)
    _overrides: tuple[str, ...] = PrivateAttr(default=())
    _notices: tuple[str, ...] = PrivateAttr(default=())
    _path: Path = PrivateAttr(default=Path("recipe.yaml"))

    @property
    def plugin_files(self) -> tuple[Path, ...]:
        """Python files outside the package, absolute, as `registry.find` takes them."""
        return self.plugins

    @property
    def origins(self) -> dict[str, str]:
        """Dotted key -> "file:line:column" or "override: key=value". What is not in it is a default."""
        return self._origins

    @property
    def chains(self) -> dict[tuple[str | int, ...], tuple[tuple[Any, str], ...]]:
        """Every value that files and overrides gave a key, in their order, each with its origin."""
        return self._chains

    @property
    def overrides(self) -> tuple[str, ...]:
        """What was typed behind the recipe."""
        return self._overrides

    @property
    def notices(self) -> tuple[str, ...]:
        """What loading did that its author may not expect, for the log."""
        return self._notices

    @property
    def path(self) -> Path:
        """The file it was loaded from; its stem names the folder of its runs."""
        return self._path

    @property
    def has_topics(self) -> bool:
        return self.distiller.name != NO_TOPICS

    @property
    def active_losses(self) -> dict[str, Loss]:
        return {name: loss for name, loss in self.losses.items() if loss.weight > 0}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

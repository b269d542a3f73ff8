"""What a recipe may say, beside the keys of plugins: sections, types, and every default, once.

The text under a field says what it means and its unit; json_schema.py and the reference read it from this file, which
costs the other verbs no time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    StringConstraints,
    Tag,
)

from framework.registry.types import Fraction

NO_TOPICS = "none"  # the distiller that finds none
WEIGHTED_SUM = "monitor"  # the score that is the sum of several, as evaluate.monitor weighs them

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

    @classmethod
    def words(cls) -> dict[str, str]:
        """The keys as a recipe writes them, each with its field, which cannot be called as a word of Python's."""
        return {field.alias or name: name for name, field in cls.model_fields.items()}


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a field of this type holds, or may hold; None where it holds plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


class Choice(Section):
    """A plugin by name, and all its keys, defaults filled in."""

    name: str
    """Which plugin of the kind that stands here."""
    keys: dict[str, Any] = Field(default_factory=dict)
    """What the plugin is built with."""


class WeightSchedule(Section):
    """A weight that moves over the run."""

    start: NonNegativeFloat = Field(0.0, alias="from")
    """The weight until `begin`."""
    to: NonNegativeFloat
    """The weight from `end` on."""
    begin: Fraction = 0.0
    """Where the weight begins to move: 0 is the first step of the run, 1 its last."""
    end: Fraction = 1.0
    """Where the weight has arrived."""
    shape: Literal["linear", "cosine"] = "linear"
    """The way there: a line, or half a cosine, which leaves and arrives slowly."""


Weight = Annotated[
    Union[Annotated[NonNegativeFloat, Tag("number")], Annotated[WeightSchedule, Tag("schedule")]],  # noqa: UP007
    # Told apart before they are read, so that a mistake in one is not told as a mistake in both.
    Discriminator(lambda value: "schedule" if isinstance(value, (dict, WeightSchedule)) else "number"),
]


class Loss(Choice):
    weight: Weight = 1.0
    """Factor of the term, or how it moves over the run. 0 throughout turns the term off: it is not built."""

    @property
    def highest(self) -> float:
        """The most that the term ever weighs."""
        return max(self.weight.start, self.weight.to) if isinstance(self.weight, WeightSchedule) else self.weight


class Optimizer(Choice):
    lr: PositiveFloat = 1e-3
    """Learning rate where the schedule is at its top."""
    encoder_lr: NonNegativeFloat | None = None
    """The same for the encoder; null: as lr, 0: the encoder is frozen."""
    group_lrs: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """The same for parts of the model, each named as its parameters begin: losses.topic, decoder.embed; the longest
    name that fits counts. A part with 0 is frozen."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the encoder's rate from each of its stages to the one before; the last learns at encoder_lr."""


class Data(Section):
    """What is read, and how it is prepared."""

    dataset: Choice
    """The source of exams."""
    image_size: Annotated[int, Field(ge=8, le=4096)] = 128
    """Side of the square that every view is fitted into, in pixels."""
    channels: Literal[1, 3] = 1
    """Channels of an image: 1 for grey, 3 for color."""
    tokenizer: Choice
    """What cuts reports into tokens."""
    augment: Choice | None = None
    """What changes the images while training, each epoch anew; null: nothing."""
    num_workers: NonNegativeInt = 0
    """Processes that load exams, of each training process; 0: it loads them itself."""
    cache_dir: str = ".cache/sonoscribe"
    """Folder for prepared images and topics, which later runs use again."""
    on_broken: Literal["stop", "skip"] = "stop"
    """What an exam that cannot be read does to the run: stop it, or be left out with a warning."""


class Model(Section):
    """From views to words."""

    encoder: Choice
    """What turns views into features."""
    decoder: Choice
    """What turns features into a report."""


class Train(Section):
    """How long, how much at a time, how exactly."""

    epochs: PositiveInt = 10
    """Passes over the training exams."""
    batch_size: PositiveInt = 16
    """Exams in one step, over all processes."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Exams that one process takes at a time, a divisor of batch_size; auto: its whole share."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the training arithmetic; auto: what the device does best."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Limit of the gradient; null: none."""
    clip_by: Literal["norm", "value"] = "norm"
    """What max_grad_norm limits; norm: the norm of the whole gradient, which is scaled down, value: each element."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 9233
    """Where every random number begins."""
    log_every: PositiveInt = 10
    """Steps between two records of training metrics."""
    early_stopping_patience: PositiveInt | None = None
    """Validations without a better monitor that end the run; null: all epochs are trained."""
    freeze: list[str] = Field(default_factory=list)
    """Parts that stay as they are, whatever their rate, each named as its parameters begin: encoder, decoder.embed.
    Batch normalization in them keeps its statistics, and they have no dropout."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """What the terms weigh: fixed, as in losses; uncertainty: that times a factor of each, which is learned."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Memory of the running average of the weights, which is what is validated and kept; null: the last weights are."""
    skip_non_finite: NonNegativeInt = 0
    """Steps with a loss or gradient that is no number that are skipped; one more stops the run."""


class Distributed(Section):
    """How processes share the work. Changes speed and memory; of results, what batch normalization sees alone."""

    strategy: Literal["auto", "ddp", "zero1", "zero2", "zero3", "fsdp"] = "auto"
    """What is cut over the processes; ddp, auto: nothing, zero1: optimizer state, zero2: gradients too, others: all."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What waits in the host's memory: optimizer (zero1 to zero3), or weights as well (all: zero3, fsdp)."""
    activation_checkpointing: bool = False
    """Computes activations again in the backward pass instead of keeping them: less memory, more time."""
    sync_batch_norm: Literal["auto", "never"] = "auto"
    """Batch normalization over the exams of all processes; auto: where they have GPUs."""
    timeout: PositiveFloat = 120.0
    """Minutes that a process waits for the others before the run ends."""
    deepspeed_config: str | None = None
    """A JSON file for DeepSpeed (zero1 to zero3), for what the recipe does not say; null: none is needed."""


Monitor = Annotated[
    Union[Annotated[str, Tag("score")], Annotated[dict[str, float], Tag("scores")]],  # noqa: UP007
    Discriminator(lambda value: "scores" if isinstance(value, dict) else "score"),
]


class Evaluate(Section):
    """How reports are written and scored, and which model is kept."""

    metrics: tuple[Choice, ...]
    """The scores to compute, in the order of the tables."""
    monitor: Monitor = "val/bleu_4"
    """What the kept model is chosen by: val/ and a score of a metric; or several, each with its weight in a sum."""
    every_epochs: PositiveInt = 1
    """Epochs from one validation to the next."""
    num_beams: PositiveInt = 1
    """Beams of the search at the end, on val and test; 1: greedy."""
    val_num_beams: PositiveInt = 1
    """Beams of the search while training, on val; 1: greedy."""
    length_penalty: float = 1.0
    """Power of the length that a report's log-probability is divided by; more than 1 favors long reports."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """Length in tokens of the sequences that may not come twice in a report; 0: all may."""
    max_length: Annotated[int, Field(ge=3)] = 150
    """Longest report in tokens, begin and end included."""
    batch_size: PositiveInt = 32
    """Exams that one process writes reports of at a time."""
    bootstrap_samples: NonNegativeInt = 1000
    """Draws of patients that the 95 % intervals of the final scores come from; 0: no intervals."""

    @property
    def monitored(self) -> str:
        """The name of the score that the kept model is chosen by, without its split."""
        return WEIGHTED_SUM if isinstance(self.monitor, dict) else self.monitor.split("/", 1)[1]

    @property
    def weights(self) -> dict[str, float]:
        """The scores whose sum is monitored, without their split, and what each weighs; none: a single score is."""
        summed = self.monitor if isinstance(self.monitor, dict) else {}
        return {name.split("/", 1)[1]: weight for name, weight in summed.items()}

    @property
    def monitor_words(self) -> str:
        """What is monitored, for people: val/bleu_4, or val/bleu_4 + 0.5 val/cider."""
        if isinstance(self.monitor, str):
            return self.monitor
        terms = [name if weight == 1 else f"{weight:g} {name}" for name, weight in self.monitor.items()]
        return " + ".join(terms).replace("+ -", "- ")


class Checkpoint(Section):
    """When the state of the run is saved, and how much of it is kept."""

    every_steps: PositiveInt | None = None
    """Steps from one checkpoint to the next, beside the one at each epoch's end; null: that one alone."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_best: NonNegativeInt = 1
    """Checkpoints with the best monitor that are kept."""
    background: bool = True
    """Writes while training goes on, from a copy in the host's memory."""


class Run(Section):
    """Where the results lie."""

    root: str = "runs"
    """Folder that all runs are in."""
    # One folder name: no way out of the root.
    name: Annotated[str, StringConstraints(pattern=r"^\w[\w.+-]{0,99}$")] = "auto"
    """Folder of this run; auto: its time and hash."""


class Recipe(Section):
    """A whole run. Equal recipes train alike, wherever their values were written."""

    plugins: tuple[Path, ...] = ()
    """Python files with plugins of your own, relative to the recipe."""
    data: Data
    distiller: Choice
    """What finds topics in the training reports; none: no topics."""
    model: Model
    losses: dict[str, Loss]
    """The terms of the loss, by plugin name. null takes out a term of the base."""
    optimizer: Optimizer
    """What turns gradients into steps."""
    schedule: Choice
    """The learning rate over the steps, as a share of lr."""
    train: Train = Train()
    distributed: Distributed = Distributed()
    evaluate: Evaluate
    checkpoint: Checkpoint = Checkpoint()
    run: Run = Run()
    init_from: str | None = None
    """A run's folder, or that of one of its checkpoints, whose encoder and decoder training begins with; null: none."""
    init_exclude: list[str] = Field(default_factory=list)
    """Parts that begin anew all the same, each named as its parameters begin: decoder, encoder.position_VD."""
    resume: str = "never"
    """never: a new run; auto: this recipe's unfinished run, if there is one; or the folder of a run to go on with."""
    resume_ignore: tuple[str, ...] = ()
    """Keys that may differ from those the run was trained with so far."""

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
        return {name: loss for name, loss in self.losses.items() if loss.highest > 0}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

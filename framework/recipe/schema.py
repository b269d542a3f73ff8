"""The schema of recipes without the keys of plugins: sections, types and defaults.

The docstring of each field gives its meaning and unit; json_schema.py and the reference read it from this file.
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

from framework.registry.trust import PIPE
from framework.registry.types import Fraction

NO_TOPICS = "none"  # the distiller that finds no topics
WEIGHTED_SUM = "monitor"  # the name of the weighted sum of scores in evaluate.monitor

# The places of plugins in a recipe; `*` is every key, or every item of a list.
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

# Default plugins.
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
    def field_names(cls) -> dict[str, str]:
        """Recipe key -> field name. They differ where the key is a Python keyword."""
        return {field.alias or name: name for name, field in cls.model_fields.items()}


def section_in(annotation: Any) -> type[Section] | None:
    """The section in the type of a field; None if it has only plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


class Choice(Section):
    """A plugin by name, with all its keys."""

    name: str
    """Name of the plugin."""
    keys: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the plugin."""


class WeightSchedule(Section):
    """A loss weight that changes over the run."""

    start: NonNegativeFloat = Field(0.0, alias="from")
    """Weight until `begin`."""
    to: NonNegativeFloat
    """Weight from `end` on."""
    begin: Fraction = 0.0
    """Start of the change, as a fraction of the run: 0 is the first step, 1 the last."""
    end: Fraction = 1.0
    """End of the change, as a fraction of the run."""
    shape: Literal["linear", "cosine"] = "linear"
    """Shape of the change: linear, or half a cosine."""


Weight = Annotated[
    Union[Annotated[NonNegativeFloat, Tag("number")], Annotated[WeightSchedule, Tag("schedule")]],  # noqa: UP007
    # Decided before validation, so that a mistake in one is not reported for both.
    Discriminator(lambda value: "schedule" if isinstance(value, (dict, WeightSchedule)) else "number"),
]


class Loss(Choice):
    weight: Weight = 1.0
    """Loss weight, or its schedule over the run. A weight of 0 disables the loss: it is not built."""

    @property
    def highest(self) -> float:
        """The largest weight over the run."""
        return max(self.weight.start, self.weight.to) if isinstance(self.weight, WeightSchedule) else self.weight


class Optimizer(Choice):
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    encoder_lr: NonNegativeFloat | None = None
    """Peak learning rate of the encoder; null: lr, 0: freezes the encoder."""
    group_lrs: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Peak learning rates by parameter-name prefix, such as losses.topic or decoder.embed_tokens; the longest match
    wins, and 0 freezes."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor between the learning rates of an encoder stage and the stage after it; the last stage has encoder_lr."""


class Data(Section):
    """Exams and their preprocessing."""

    dataset: Choice
    """Source of exams."""
    image_size: Annotated[int, Field(ge=8, le=4096)] = 128
    """Height and width of the images, in pixels; views are padded to a square."""
    channels: Literal[1, 3] = 1
    """Image channels: 1 for grayscale, 3 for color."""
    autocontrast: Annotated[float, Field(ge=0, lt=50)] | None = None
    """Stretches the grey levels of each image: this percentage of its darkest pixels becomes black, and of its
    brightest white. Images of different scanners look more alike; null: as they are."""
    tokenizer: Choice
    """Tokenizer of reports."""
    augment: Choice | None = None
    """Augmentation of training images; null: none."""
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Data-loading processes per training process; 0: loads in the training process."""
    cache_dir: str = ".cache/sonoscribe"
    """Folder of preprocessed images and topics, which later runs reuse."""
    cache_images: bool = True
    """Decodes and resizes all images once, into cache_dir. False: each time they are read, for sets larger than the
    disk; data.num_workers then decodes them beside the training."""
    cache_features: bool = False
    """Computes the feature maps of the frozen part of the encoder once, in cache_dir, and trains from them; not with
    augment."""
    on_broken: Literal["stop", "skip"] = "stop"
    """What to do with an unreadable exam: stop the run, or skip the exam with a warning."""


class Model(Section):
    """Encoder and decoder."""

    encoder: Choice
    """Image encoder: views to features."""
    decoder: Choice
    """Report decoder: features to tokens."""


class Train(Section):
    """Training loop: length, batches, precision and clipping."""

    epochs: Annotated[int, Field(gt=0, le=1_000_000)] = 10
    """Number of passes over the training exams."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    """Global batch size: exams per step over all processes."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Exams per forward pass of one process, a divisor of batch_size; auto: all, or on a GPU as many as fit."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of training; auto: bf16 on a GPU that supports it, and for decoders of width 512 or more on a CPU with
    AMX or AVX512-BF16; else fp32."""
    compile: bool | Literal["reduce-overhead"] = False
    """torch.compile of forward and backward (ddp only): faster steps after minutes of compiling. reduce-overhead: with
    CUDA graphs, on GPUs only."""
    tf32: bool = False
    """TF32 for fp32 matrix products on GPUs: faster, 10 bits of mantissa. Convolutions use it in any case."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient clipping threshold; null disables clipping."""
    clip_by: Literal["norm", "value"] = "norm"
    """What max_grad_norm limits: the global norm of the gradient, or the absolute value of each element."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 9233
    """Random seed."""
    log_every: PositiveInt = 10
    """Steps between two records of training metrics."""
    profile: bool = False
    """Profiles steps 4 to 8: a trace, and a page with where a step's time goes, in the run's folder `profile`."""
    early_stopping_patience: PositiveInt | None = None
    """Validations without improvement of the monitor before the run stops; null disables early stopping."""
    freeze: list[str] = Field(default_factory=list)
    """Frozen parameters by name prefix, such as encoder or decoder.embed_tokens. Frozen modules are in eval mode: no
    dropout, fixed batch-norm statistics."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """Weights of the loss terms: fixed, or multiplied by a learned factor of each (uncertainty)."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """EMA decay; null disables EMA. With EMA, the averaged weights are validated and exported."""
    skip_non_finite: NonNegativeInt = 0
    """Maximum number of NaN/Inf steps to skip; the next one stops the run."""


class Distributed(Section):
    """Distribution over processes. Changes speed and memory; results change only through batch-norm statistics."""

    strategy: Literal["auto", "ddp", "zero1", "zero2", "zero3", "fsdp"] = "auto"
    """What is sharded. auto, ddp: nothing, zero1: optimizer state, zero2: also gradients, zero3, fsdp: also weights."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is offloaded to CPU memory: the optimizer (zero1 to zero3), or weights as well (all: zero3, fsdp)."""
    activation_checkpointing: bool = False
    """Recomputes activations in the backward pass instead of storing them: less memory, more time."""
    sync_batch_norm: Literal["auto", "never"] = "auto"
    """Synchronizes batch-norm statistics over processes; auto: on GPUs."""
    timeout: Annotated[float, Field(gt=0, le=100_000)] = 120.0
    """Time-out of collective operations, in minutes."""
    deepspeed_config: str | None = None
    """DeepSpeed JSON file (zero1 to zero3) for settings that the recipe does not have; null: none."""


Monitor = Annotated[
    Union[Annotated[str, Tag("score")], Annotated[dict[str, float], Tag("scores")]],  # noqa: UP007
    Discriminator(lambda value: "scores" if isinstance(value, dict) else "score"),
]


class Evaluate(Section):
    """Generation, scores, and the choice of the best checkpoint."""

    metrics: tuple[Choice, ...]
    """Metrics, in the order of the tables. An empty list generates no reports: the scores are the means of the loss
    terms, by the names of the losses."""
    monitor: Monitor = "val/bleu_4"
    """Score that selects the best checkpoint: val/<score>, or several with their weights in a sum."""
    every_epochs: PositiveInt = 1
    """Epochs between validations."""
    num_beams: Annotated[int, Field(ge=1, le=1000)] = 1
    """Beam width of the final evaluation on val and test; 1: greedy."""
    val_num_beams: Annotated[int, Field(ge=1, le=1000)] = 1
    """Beam width of validation during training; 1: greedy."""
    augmented_copies: Annotated[int, Field(ge=0, le=100)] = 0
    """Copies of the images, changed by data.augment, over which the final evaluation and `predict` average the
    probabilities of words, together with the images as they are; 0: none."""
    length_penalty: float = 1.0
    """Exponent of the length by which a report's log-probability is divided; above 1 favors long reports."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """Length of token n-grams that may not repeat in a report; 0: no limit."""
    max_length: Annotated[int, Field(ge=3, le=100_000)] = 150
    """Maximum length of a report in tokens, including BOS and EOS."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Exams per process that are generated at once."""
    bootstrap_samples: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Bootstrap samples of patients for the 95 % confidence intervals of the final scores; 0: no intervals."""

    @property
    def search(self) -> dict[str, Any]:
        """Keyword arguments of `generate`; the beam width differs between validation and the final evaluation."""
        return {name: getattr(self, name) for name in ("max_length", "length_penalty", "no_repeat_ngram_size")}

    @property
    def monitored(self) -> str:
        """The name of the monitored score, without its split."""
        return WEIGHTED_SUM if isinstance(self.monitor, dict) else self.monitor.split("/", 1)[1]

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the monitored sum by score, without the split; empty if a single score is monitored."""
        weights = self.monitor if isinstance(self.monitor, dict) else {}
        return {name.split("/", 1)[1]: weight for name, weight in weights.items()}

    @property
    def monitor_words(self) -> str:
        """The monitor as text: val/bleu_4, or val/bleu_4 + 0.5 val/cider."""
        if isinstance(self.monitor, str):
            return self.monitor
        terms = [name if weight == 1 else f"{weight:g} {name}" for name, weight in self.monitor.items()]
        return " + ".join(terms).replace("+ -", "- ")


class Checkpoint(Section):
    """When checkpoints are saved, and how many are kept."""

    every_steps: PositiveInt | None = None
    """Steps between checkpoints, in addition to one at the end of each epoch; null: only at the end of epochs."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_best: NonNegativeInt = 1
    """Number of checkpoints with the best monitor to keep."""
    background: bool = True
    """Writes checkpoints while training continues, from a copy in CPU memory."""


TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class Run(Section):
    """The folder of the results, and who shows them."""

    root: str = "runs"
    """Folder of all runs."""
    # A single folder name, which cannot leave the root.
    name: Annotated[str, StringConstraints(pattern=r"^\w[\w.+-]{0,99}$")] = "auto"
    """Folder of this run; auto: time and hash."""
    trackers: list[TrackerName] = Field(default_factory=lambda: list[TrackerName](["tensorboard"]))
    """Where curves and scores are shown, beside metrics.jsonl. mlflow and wandb need the extra trackers."""


class Recipe(Section):
    """A complete run. Equal recipes give equal results, wherever their values are written."""

    plugins: tuple[Path, ...] = ()
    """Plugin files, relative to the recipe."""
    data: Data
    distiller: Choice
    """Finds topics in the training reports; none: no topics."""
    model: Model
    losses: dict[str, Loss]
    """Loss terms by plugin name; null removes a term of the base."""
    optimizer: Optimizer
    """Optimizer and learning rates."""
    schedule: Choice
    """Learning-rate schedule, as a factor of the peak learning rate."""
    train: Train = Train()
    distributed: Distributed = Distributed()
    evaluate: Evaluate
    checkpoint: Checkpoint = Checkpoint()
    run: Run = Run()
    init_from: str | None = None
    """Folder of a run or checkpoint whose encoder and decoder weights initialize the model; null: none."""
    init_exclude: list[str] = Field(default_factory=list)
    """Parameters that init_from does not initialize, by name prefix, such as decoder or encoder.position_VD."""
    resume: str = "never"
    """never: new run; auto: resumes the unfinished run of this recipe, if there is one; or the folder of a run."""
    resume_ignore: tuple[str, ...] = ()
    """Keys that may differ from the resumed run."""

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _chains: dict[tuple[str | int, ...], tuple[tuple[Any, str], ...]] = PrivateAttr(default_factory=dict)
    _overrides: tuple[str, ...] = PrivateAttr(default=())
    _notices: tuple[str, ...] = PrivateAttr(default=())
    _path: Path = PrivateAttr(default=Path("recipe.yaml"))

    @property
    def plugin_files(self) -> tuple[Path, ...]:
        """Absolute paths of the plugin files, as `registry.find` takes them."""
        return self.plugins

    @property
    def commands(self) -> tuple[str, ...]:
        """Commands that read the data set: its keys that begin with `pipe:`."""
        keys = self.data.dataset.keys.values()
        return tuple(value for value in keys if isinstance(value, str) and value.startswith(PIPE))

    @property
    def origins(self) -> dict[str, str]:
        """Dotted key -> "file:line:column" or "override: key=value". Other keys have their default."""
        return self._origins

    @property
    def chains(self) -> dict[tuple[str | int, ...], tuple[tuple[Any, str], ...]]:
        """Key -> every value that files and overrides set, in order, with its origin."""
        return self._chains

    @property
    def overrides(self) -> tuple[str, ...]:
        """The overrides of the command line."""
        return self._overrides

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices of loading, for the log."""
        return self._notices

    @property
    def path(self) -> Path:
        """The recipe file; its stem is the name of the folder of its runs."""
        return self._path

    @property
    def has_topics(self) -> bool:
        return self.distiller.name != NO_TOPICS

    @property
    def active_losses(self) -> dict[str, Loss]:
        return {name: loss for name, loss in self.losses.items() if loss.highest > 0}

    @property
    def freezes_decoder(self) -> bool:
        """Whether no parameter of the decoder trains."""
        lrs = self.optimizer.group_lrs
        trained_inside = any(lr for part, lr in lrs.items() if part.startswith("decoder."))
        return "decoder" in self.train.freeze or (lrs.get("decoder") == 0 and not trained_inside)

    @property
    def has_random_decoder(self) -> bool:
        """Whether the decoder keeps its random weights: it is frozen, and no other model or file gives it weights."""
        pretrained = self.init_from is not None or self.model.decoder.keys.get("weights") is not None
        return self.freezes_decoder and not pretrained

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

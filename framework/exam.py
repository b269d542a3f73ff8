"""What flows: exams from a data set, batches to the task, features and logits to the losses.

Shapes: B batch, V views, C channels, H W image, N patches, D width, T tokens, W words in the vocabulary, K topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:  # torch takes seconds to import, and the data sets do not need it
    import numpy as np
    from torch import Tensor


class ExamError(ValueError):
    """An exam that cannot be used: a missing or broken file, a text that is not there. Names the exam."""

    def __init__(self, exam_id: str, problem: str) -> None:
        super().__init__(f"exam {exam_id}: {problem}")
        self.exam_id = exam_id
        self.problem = problem

    def __reduce__(self) -> tuple[type[ExamError], tuple[str, str]]:
        return type(self), (self.exam_id, self.problem)  # so that it crosses from a worker process whole


class View(Protocol):
    """One image of an exam, loaded when asked for. Views must pickle, since worker processes load them."""

    @property
    def name(self) -> str:
        """What a person would call it: a file name, or side and plane."""

    def load(self) -> np.ndarray:
        """Grey values, uint8, H x W (or H x W x 3 where the source has colour). Raises `OSError` if it is broken."""


@dataclass(frozen=True)
class Exam:
    """One patient visit: its views and the report that was written about them."""

    id: str
    patient: str  # splits never share a patient
    views: tuple[View, ...]
    report: str
    attributes: Mapping[str, Any] = field(default_factory=dict)  # what is known to be true, where a source knows it
    rewording: str | None = None  # the same truth in other words: the ceiling of any score of wording


class ExamSource(Protocol):
    """What a `dataset` plugin is."""

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams of `train`, `val` and `test`. Cheap: no view is loaded."""

    @property
    def cache_key(self) -> str:
        """Changes whenever an image of this source could change: settings, version, and the files' sizes and times."""


@dataclass
class Batch:
    """Exams side by side, padded."""

    exam_ids: list[str]
    image_BVCHW: Tensor  # float, 0 to 1
    view_mask_BV: Tensor  # bool, True where there is a view
    report_BT: Tensor  # long: BOS, words, EOS, then PAD
    topic_B: Tensor | None = None  # long
    topic_weights_BK: Tensor | None = None  # float, how much of each topic a report has; rows sum to 1

    def to(self, device: Any, *, images: bool = True) -> Batch:
        """A copy with its tensors on the device; the images only if `images` is true."""
        moved = {
            name: value.to(device, non_blocking=True)
            if hasattr(value, "to") and (images or name != "image_BVCHW")
            else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which copies to a GPU do not wait; DataLoader calls it."""
        return Batch(**{name: v.pin_memory() if hasattr(v, "pin_memory") else v for name, v in vars(self).items()})


class Features(NamedTuple):
    """What an encoder gives. None stands for what its `gives` leaves out, which no part of the recipe then needs."""

    patches_BND: Tensor
    patch_mask_BN: Tensor  # bool, True where there is a patch
    pooled_BD: Tensor  # one vector an exam


@dataclass
class Outputs:
    """What losses may look at. `logits_BTW[:, t]` predicts `report_BT[:, t + 1]`; T is one less than the report's.

    None stands for logits that no loss of the recipe needs.
    """

    features: Features
    logits_BTW: Tensor
    decoder: Any = None  # the module itself, for a loss that writes reports with it


class Term(NamedTuple):
    """What a loss with metrics returns; a loss without returns the total alone.

    Attributes:
        total: sum of the term over the items that `count` counts, with gradient. 0-dim float32
        metrics: further sums over these items, for the log; the same names for every batch. 0-dim each
    """

    total: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A generated report beside its reference, as metrics see it."""

    exam_id: str
    prediction: str
    reference: str
    prediction_words: tuple[str, ...]
    reference_words: tuple[str, ...]


PAD = 0  # fills a batch; never a target
BOS = 1  # before the first word
EOS = 2  # after the last word
UNK = 3  # a word that the vocabulary does not hold
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")  # by id, as vocabularies spell them; no text segments into these

"""The data that flows: exams from a data set, batches to the task, features and logits to the losses.

Shapes: B batch, V views, M views of all exams, C channels, H W image, N patches, D width, T tokens, W words in the
vocabulary, K topics.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

from framework.runtime.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and data sets do not need it
    import numpy as np
    from torch import Tensor


class ExamError(UserError):
    """An exam that cannot be used, such as one with a broken image. The place is `exam ID`."""

    def __init__(self, exam_id: str, code: str, found: str, *, expected: str = "", hint: str = "") -> None:
        super().__init__(code, found, place=f"exam {exam_id}", expected=expected, hint=hint)

    @property
    def exam_id(self) -> str:
        """The exam of the first problem."""
        return self.place.removeprefix("exam ")


class View(Protocol):
    """One image of an exam, loaded on demand. Views must pickle, because worker processes load them."""

    @property
    def name(self) -> str:
        """A name for messages and pages, such as a file name, or side and plane."""

    def load(self) -> np.ndarray:
        """The image, uint8 [H, W], or [H, W, 3] for colour. Raises `OSError` if it is broken."""


@dataclass(frozen=True)
class Exam:
    """One patient visit: its views and their report."""

    id: str
    patient: str  # a patient appears in only one split
    views: tuple[View, ...]
    report: str
    attributes: Mapping[str, Any] = field(default_factory=dict)  # ground truth that the source knows
    rewording: str | None = None  # the report in other words: an oracle for scores of wording


class LazyExams(Sequence[Exam]):
    """Exams of a split that are made when they are read."""

    @abstractmethod
    def make(self, number: int) -> Exam:
        """The exam with a number from 0 to the number of exams - 1."""

    @overload
    def __getitem__(self, index: int) -> Exam: ...
    @overload
    def __getitem__(self, index: slice) -> list[Exam]: ...
    def __getitem__(self, index: int | slice) -> Exam | list[Exam]:
        if isinstance(index, slice):
            return [self.make(number) for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"there is no exam {index}, the split has {len(self)} exams")
        return self.make(number)

    def __iter__(self) -> Iterator[Exam]:
        return map(self.make, range(len(self)))


class ExamSource(Protocol):
    """The interface of a `dataset` plugin.

    It may offer `reports()`, the reports of each split where images are missing, and `training_order(exams)`: a
    function of (seed, epoch) that gives the numbers of these exams in the order in which an epoch reads them. Without
    it, an epoch reads them in random order.
    """

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams of `train`, `val` and `test`; a warning names other splits. Cheap: no view is loaded."""

    @property
    def cache_key(self) -> str:
        """Changes whenever an image of this source could change: settings, version, and the files' sizes and times."""


def scaled(image: Tensor) -> Tensor:
    """The images as an encoder reads them: uint8 to float from 0 to 1."""
    return image.float() / 255


@dataclass
class Batch:
    """A padded batch of exams."""

    exam_ids: list[str]
    # uint8 as it is loaded; float, 0 to 1, once `to` has moved it; with data.cache_features the encoder's maps BVDhw
    image_BVCHW: Tensor
    view_mask_BV: Tensor  # bool, True where there is a view
    report_BT: Tensor  # long: BOS, words, EOS, then PAD
    topic_B: Tensor | None = None  # long
    topic_weights_BK: Tensor | None = None  # float, how much of each topic a report has; rows sum to 1
    targets: Mapping[str, Tensor] = field(default_factory=dict)  # loss -> its targets, [B, ...]
    copy_BVCHW: Tensor | None = None  # the same images, augmented a second time, for losses that compare the two

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """A copy whose tensors are what `change` returns for them."""

        def changed(value: Any) -> Any:
            return None if value is None else change(value)

        rest = {name: changed(value) for name, value in vars(self).items() if name not in ("exam_ids", "targets")}
        return Batch(self.exam_ids, **rest, targets={loss: change(value) for loss, value in self.targets.items()})

    def to(self, device: Any, *, images: bool = True) -> Batch:
        """A copy with its tensors on the device; the images only if `images` is true, as float from 0 to 1.

        They are scaled there: as bytes, they take a quarter of the time to copy and no work of the loader.
        """
        stays = None if images else self.image_BVCHW
        batch = self.map(lambda tensor: tensor if tensor is stays else tensor.to(device, non_blocking=True))
        if images and not batch.image_BVCHW.is_floating_point():
            batch.image_BVCHW = scaled(batch.image_BVCHW)
        return batch

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory, from which copies to a GPU do not wait; DataLoader calls it."""
        return self.map(lambda tensor: tensor.pin_memory())


class Features(NamedTuple):
    """The output of an encoder. A field is None if the encoder's `gives` leaves it out; then no part needs it."""

    patches_BND: Tensor
    patch_mask_BN: Tensor  # bool, True where there is a patch
    pooled_BD: Tensor  # one vector per exam


@dataclass
class Outputs:
    """The inputs of the losses. `logits_BTW[:, t]` predicts `report_BT[:, t + 1]`; T is one less than the report's.

    `features`, `logits_BTW` and `copies_2MD` are None if no loss of the recipe needs them.
    """

    features: Features
    logits_BTW: Tensor
    decoder: Any = None  # the module, for losses that generate reports
    copies_2MD: Any = None  # pooled features of each of the batch's M views alone, of both augmentations


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
    attributes: Mapping[str, str] = field(default_factory=dict)  # of the exam: what a metric's `exam_attributes` names


PAD = 0  # fills a batch; never a target
BOS = 1  # before the first word
EOS = 2  # after the last word
UNK = 3  # a word outside the vocabulary
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")  # by id; no text segments into these

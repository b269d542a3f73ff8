"""Plugins that are read as text and never imported: the import below would fail."""

from typing import Literal

import a_module_that_is_not_there
from pydantic import NonNegativeFloat, PositiveInt

from framework.registry import register
from framework.registry.types import Fraction


@register("dataset", "toy_exams")
class ToyExams:
    """Exams that are not there.

    More about them.

    Args:
        organ: what is looked at.
        exams: how many,
            in all splits.
    """

    def __init__(self, *, organ: Literal["breast", "liver"] = "breast", exams: PositiveInt = 8) -> None: ...


@register("encoder", "toy_eyes")
class ToyEyes:
    """Looks.

    Args:
        width: of what it gives.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: PositiveInt = 4,
        sizes: tuple[int, ...] = (1, 2),
        words: list[str] = ["a"],  # noqa: B006
        options: dict[str, float] = {},  # noqa: B006
        cut: Fraction | None = None,
        deep: bool = False,
        model_config: "str | None" = None,
    ) -> None: ...


@register("encoder", "other_eyes")
class OtherEyes:
    """Looks away."""

    def __init__(self, *, channels: int, height: int) -> None: ...


@register("decoder", "toy_pen")
class ToyPen:
    """Writes."""

    def __init__(
        self, *, vocabulary_size: int, feature_width: int, max_length: int, dropout: Fraction = 0.1
    ) -> None: ...


@register("loss", "toy_words")
class ToyWords:
    """Of words."""

    needs = ("logits",)

    def __init__(self, *, smoothing: NonNegativeFloat = 0.0) -> None: ...


@register("loss", "toy_topic")
class ToyTopic:
    """Of topics."""

    needs = ("pooled", "topics")

    def __init__(self, *, feature_width: int, topic_count: int) -> None: ...


@register("distiller", "toy_sorter")
class ToySorter:
    """Sorts."""

    def __init__(self, *, segment: object, seed: int, topics: PositiveInt = 3) -> None: ...


@register("metric", "toy_score")
class ToyScore:
    """Scores."""

    names = ("toy_1", "toy_2")
    higher_is_better = True


@register("metric", "toy_other")
class ToyOther:
    """Scores otherwise."""

    names = ("other",)
    higher_is_better = False


assert a_module_that_is_not_there

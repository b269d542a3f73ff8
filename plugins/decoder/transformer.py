"""The published report decoder: a transformer over the patches that writes one word at a time."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from framework.models.transformer_decoder import ReportTransformer
from framework.registry import register
from framework.registry.types import Fraction


@register("decoder", "transformer")
class Transformer(ReportTransformer):
    """Pre-norm transformer over the patches.

    The patches are projected to `width`, pass `encoder_layers` of self-attention and are attended to by `layers` of
    decoder, with sinusoidal positions. Generation keeps each layer's keys and values.

    Source:
        Vaswani et al. 2017, arXiv 1706.03762, section 3; norms first: Xiong et al. 2020, arXiv 2002.04745; its
        place and sizes: Li et al. 2024, arXiv 2406.00644.

    Args:
        layers: Decoder layers. [layers]
        encoder_layers: Self-attention layers over the patches; 0 leaves the patches as they are. [layers]
        width: Width of every layer. [channels]
        heads: Attention heads; they divide the width. [heads]
        feedforward: Width inside the feed-forward layers. [channels]
        dropout: Share of units dropped in every layer. [share]
        feature_dropout: Share of units dropped from the projected patches. [share]
    """

    needs = ("patches",)
    gives = ("logits",)

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_width: int,
        max_length: int,
        layers: PositiveInt = 3,
        encoder_layers: NonNegativeInt = 3,
        width: PositiveInt = 512,
        heads: PositiveInt = 8,
        feedforward: PositiveInt = 512,
        dropout: Fraction = 0.1,
        feature_dropout: Fraction = 0.5,
    ) -> None:
        super().__init__(
            vocabulary_size=vocabulary_size,
            feature_width=feature_width,
            max_length=max_length,
            layers=layers,
            encoder_layers=encoder_layers,
            width=width,
            heads=heads,
            feedforward=feedforward,
            dropout=dropout,
            feature_dropout=feature_dropout,
        )

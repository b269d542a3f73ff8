"""The published report decoder: a transformer over the patches that generates one token at a time."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from framework.models.transformer_decoder import BaseTransformerDecoder
from framework.registry import register
from framework.registry.types import Fraction


@register("decoder", "transformer")
class Transformer(BaseTransformerDecoder):
    """Pre-norm transformer over the patches.

    The patches are projected to `width` and pass `encoder_layers` of self-attention; `layers` decoder layers attend to
    them. Positions are sinusoidal. Generation caches keys and values of each layer.

    Source:
        Vaswani et al. 2017, arXiv 1706.03762, section 3; pre-norm: Xiong et al. 2020, arXiv 2002.04745; sizes:
        Li et al. 2024, arXiv 2406.00644.

    Args:
        layers: Decoder layers. [layers]
        encoder_layers: Self-attention layers over the patches; 0 for none. [layers]
        width: Width of every layer. [channels]
        heads: Attention heads; must divide the width. [heads]
        feedforward: Hidden width of the feed-forward layers. [channels]
        dropout: Dropout probability in every layer. [share]
        feature_dropout: Dropout probability of the projected patches. [share]
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

"""Report vector: trains the encoder to predict where the report lies among all reports.

Shapes: B batch, T tokens, W words in the vocabulary, D dimensions of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from framework.exam import BOS, EOS, PAD, UNK, Batch, Outputs
from framework.models.external_weights import ExternalWeights
from framework.registry import register
from framework.runtime.errors import UserError
from framework.text.embedding import SentenceEmbedding
from framework.text.vocabulary import require_whole_words


@register("loss", "report_vector")
class ReportVector(nn.Module):
    """One minus the cosine between the report's vector and a prediction from the pooled image features.

    It aligns the image features with the content of reports, as `topic` does, without a division into topics. The
    decoder takes no part.

    `lsa` is the report space that the training reports span; a report is the sum of its words' vectors, which are
    frozen and saved in checkpoints. `sentence_encoder` embeds the text of each training report once, by a frozen
    pretrained model, which training needs and `predict` does not. Exams whose report has no known word are not counted.

    Source:
        Sonoscribe. Report spaces: Deerwester et al. 1990, JASIS 41(6); sentence embeddings: Reimers and Gurevych 2019,
        arXiv 1908.10084, section 3.

    Args:
        space: where the report's vector lies.
        dimensions: of `lsa`, at most: those that explain the most of the training reports; null: all. [dimensions]
        encoder: the sentence encoder: a folder, package:NAME/FOLDER of an installed package, or a hub name.
        hidden: width of a hidden layer of the head; 0: a linear head. [channels]
    """

    needs = ("pooled",)

    def __init__(
        self,
        *,
        vocabulary: Sequence[str],
        word_vectors_WD: Tensor,
        feature_width: PositiveInt,
        space: Literal["lsa", "sentence_encoder"] = "lsa",
        dimensions: PositiveInt | None = None,
        encoder: str | None = None,
        hidden: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.targets: Callable[[Sequence[str]], np.ndarray] | None = None
        self.external_weights: ExternalWeights | None = None
        if space == "lsa":
            self._ignored("encoder", encoder, "sentence_encoder")
            require_whole_words(vocabulary, "losses.report_vector")
            vectors_WD = torch.as_tensor(word_vectors_WD).detach()[:, :dimensions].to(torch.float32, copy=True)
            vectors_WD[[PAD, BOS, EOS, UNK]] = 0
            self.register_buffer("word_vectors_WD", vectors_WD)
            width = vectors_WD.shape[1]
        else:
            self._ignored("dimensions", dimensions, "lsa")
            if not encoder:
                raise UserError(
                    "missing-key", "space sentence_encoder needs an encoder", place="losses.report_vector.encoder",
                    expected="a folder, package:NAME/FOLDER or a name on the model hub",
                )  # fmt: skip
            embedding = SentenceEmbedding(encoder)
            self.targets = embedding.embed
            self.external_weights = ExternalWeights(encoder, embedding.folder, frozenset())
            width = embedding.encoder.width
        layers = [nn.Linear(feature_width, hidden), nn.ReLU()] if hidden else []
        self.head = nn.Sequential(*layers, nn.Linear(hidden or feature_width, width))

    word_vectors_WD: Tensor  # of `lsa`

    def count(self, batch: Batch) -> Tensor:
        """The number of exams whose report has a known word: 0-dim float."""
        return (self._vectors(batch).norm(dim=-1) > 0).sum().float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """1 - cosine, from 0 to 2, summed over the counted exams: 0-dim float32."""
        vector_BD = self._vectors(batch)
        distance_B = 1 - F.cosine_similarity(self.head(outputs.features.pooled_BD).float(), vector_BD, dim=-1)
        return (distance_B * (vector_BD.norm(dim=-1) > 0)).sum()

    def _vectors(self, batch: Batch) -> Tensor:
        """Vectors of the reports, float32 [B, D]; zeros for a report without a known word."""
        if self.targets is None:
            return self.word_vectors_WD.float()[batch.report_BT].sum(1)
        return batch.targets["report_vector"]

    @staticmethod
    def _ignored(key: str, value: object, space: str) -> None:
        if value is not None:
            raise UserError(
                "ignored-setting", f"{value!r} has no effect in this space", place=f"losses.report_vector.{key}",
                hint=f"Remove it, or set space: {space}.",
            )  # fmt: skip

"""The term that looks at a report as a whole: does what is written mean what it should, in whatever order?

The global semantic comparison of arXiv 2406.00644. Its published code (KMVE_RG/modules/MyTrainer.py) decodes text,
compares sentence embeddings and wraps the similarity in a new tensor, so no gradient reaches the model. Here it does:
the expected word counts of the decoder's softmax go through the linear map of a report space.

Shapes: B batch, T tokens, W words in the vocabulary, D dimensions of the report space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.exam import Batch, Outputs
from framework.registry import register
from framework.special_tokens import BOS, EOS, PAD, UNK


@register("loss", "global_semantic")
class GlobalSemantic(nn.Module):
    """One minus the cosine between the report that is expected of the decoder and the reference, in a report space.

    Exams whose reference holds no word of the report space have no direction to compare with: they neither count nor
    add to the sum. The word vectors are frozen and saved with the model.

    Source:
        The global semantic comparison of Li et al. 2024, arXiv 2406.00644, made differentiable here.
    """

    needs = ("logits",)

    word_vectors_WD: Tensor

    def __init__(self, *, word_vectors_WD: Tensor) -> None:
        super().__init__()
        vectors = torch.as_tensor(word_vectors_WD).detach().to(torch.float32, copy=True)
        vectors[[PAD, BOS, EOS, UNK]] = 0  # signs, not words
        if not vectors.any():
            raise ValueError(
                f"loss global_semantic: none of the {len(vectors)} tokens of the vocabulary is a word of the report "
                "space; the tokenizer must write the words that the space was fitted on, or drop this loss"
            )
        self.register_buffer("word_vectors_WD", vectors)

    def count(self, batch: Batch) -> Tensor:
        """The number of exams whose reference has a direction: 0-dim float."""
        return self._has_direction(self._reference(batch)).sum().float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """From 0 (same direction) to 2 for each exam that counts, summed: 0-dim float32."""
        logits_BTW = outputs.logits_BTW
        assert logits_BTW.shape[-1] == len(self.word_vectors_WD), (logits_BTW.shape, self.word_vectors_WD.shape)
        # Under autocast the products would run in half precision, and a cosine near 1 would lose its gradient.
        with torch.autocast(device_type=logits_BTW.device.type, enabled=False):
            reference_BD = self._reference(batch)
            written_BT = (batch.report_BT[:, 1:] != PAD).float()
            counts_BW = torch.einsum("btw,bt->bw", logits_BTW.float().softmax(dim=-1), written_BT)
            expected_BD = counts_BW @ self.word_vectors_WD.float()
            distance_B = 1 - F.cosine_similarity(expected_BD, reference_BD, dim=-1)
            # A product rather than a selection: the graph reaches the decoder on every rank, whatever counts.
            return (distance_B * self._has_direction(reference_BD)).sum()

    def _reference(self, batch: Batch) -> Tensor:
        """Where the reference reports point, float32 [B, D]."""
        return self.word_vectors_WD.float()[batch.report_BT].sum(dim=1)

    @staticmethod
    def _has_direction(reference_BD: Tensor) -> Tensor:
        return reference_BD.norm(dim=-1) > 0

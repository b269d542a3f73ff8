"""The term that looks at a report as a whole: does what is written mean what it should, in whatever words?

The global semantic comparison of arXiv 2406.00644. Its published code (KMVE_RG/modules/MyTrainer.py) decodes text,
compares sentence embeddings and wraps the similarity in a new tensor, so no gradient reaches the model. Here it does,
in either space: what the decoder's softmax expects goes through a map that is differentiable; nothing is sampled.

Shapes: B batch, T tokens, W words in the vocabulary, P pieces of a word, L pieces of a report, M pieces of a batch, D
dimensions of the space (for pieces: width of the encoder's input).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.exam import BOS, EOS, PAD, UNK, Batch, Outputs
from framework.models.external_weights import ExternalWeights
from framework.registry import register
from framework.text.sentence_encoder import SentenceEncoder

log = logging.getLogger(__name__)
SPECIAL_IDS = (PAD, BOS, EOS, UNK)  # tokens that are no words
# How tokenizers of language models mark that a word goes on (WordPiece), or begins (BPE, unigram).
PART_OF_WORD = re.compile(r"##\w|[Ġ▁]")


@register("loss", "global_semantic")
class GlobalSemantic(nn.Module):
    """One minus the cosine between the report that is expected of the decoder and the reference.

    `lsa` compares in the report space, whatever the order of the words: the expected word counts go through its linear
    map, whose word vectors are frozen and saved with the model. Exams whose reference holds no word of that space have
    no direction to compare with; they neither count nor add to the sum.

    `sentence_encoder` compares as a pretrained model reads: at each place of the reference, the softmax over the
    vocabulary gives the expected input embedding, and these go through the frozen encoder as a text would. A word is
    several of the encoder's pieces, so a place has as many as the reference's word there: another word puts its own
    pieces into these, cut if it has more, its last one again if it has fewer. So the encoder reads what it was trained
    to read (whole pieces, at its own positions, between its own signs) and a decoder that is certain of the reference
    has distance 0 by construction: the reference goes the same way. The mean of a word's pieces in one place would be
    simpler, but is nothing that the encoder has ever read, just for the rare words that matter. Where a report ends is
    the business of `next_token`. References without a known word do not count. The encoder is neither trained, saved
    nor exported, so training and `evaluate` need its files and `predict` does not. It runs in fp32, twice a step: for
    16 phantom reports all-MiniLM-L6-v2 takes 2.1 s of CPU time.

    Source:
        The global semantic comparison of Li et al. 2024, arXiv 2406.00644, made differentiable here. Sentence
        embeddings: Reimers and Gurevych 2019, arXiv 1908.10084, section 3.

    Args:
        space: where reports are compared.
        encoder: the sentence encoder: a folder, package:NAME/FOLDER of an installed package, or a hub name.
    """

    needs = ("logits",)

    def __init__(
        self,
        *,
        vocabulary: Sequence[str],
        word_vectors_WD: Tensor,
        space: Literal["lsa", "sentence_encoder"] = "lsa",
        encoder: str | None = None,
    ) -> None:
        super().__init__()
        self.sentences: Sentences | None = None
        self.external_weights: ExternalWeights | None = None
        if part := next((word for word in vocabulary if PART_OF_WORD.match(word)), None):
            raise ValueError(
                "loss global_semantic: both spaces know whole words, and the tokenizer's vocabulary holds parts of "
                f"words, such as '{part}'; set data.tokenizer: words, or drop this loss"
            )
        if space == "sentence_encoder":
            if not encoder:
                raise ValueError(
                    "loss global_semantic: space sentence_encoder needs an `encoder`: a folder, package:NAME/FOLDER or "
                    "a name on the model hub"
                )
            self.sentences = Sentences(SentenceEncoder(encoder), vocabulary)
            self.external_weights = ExternalWeights(encoder, self.sentences.encoder.folder, frozenset())
            return
        if encoder is not None:
            raise ValueError(
                f"loss global_semantic: space {space} reads no encoder; leave out '{encoder}', or set space: "
                "sentence_encoder"
            )
        vectors = torch.as_tensor(word_vectors_WD).detach().to(torch.float32, copy=True)
        vectors[list(SPECIAL_IDS)] = 0
        if not vectors.any():
            raise ValueError(
                f"loss global_semantic: none of the {len(vectors)} tokens of the vocabulary is a word of the report "
                "space; the tokenizer must write the words that the space was fitted on, or drop this loss"
            )
        self.register_buffer("word_vectors_WD", vectors)

    word_vectors_WD: Tensor  # of `lsa`

    def count(self, batch: Batch) -> Tensor:
        """The number of exams whose reference can be compared with: 0-dim float."""
        return self._comparable(batch).sum().float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """From 0 (same direction) to 2 for each exam that counts, summed: 0-dim float32."""
        logits_BTW = outputs.logits_BTW
        # Under autocast the products would run in half precision, and a cosine near 1 would lose its gradient.
        with torch.autocast(device_type=logits_BTW.device.type, enabled=False):
            share_BTW = logits_BTW.float().softmax(dim=-1)
            if self.sentences is None:
                assert logits_BTW.shape[-1] == len(self.word_vectors_WD), (logits_BTW.shape, self.word_vectors_WD.shape)
                written_BT = (batch.report_BT[:, 1:] != PAD).float()
                expected_BD = torch.einsum("btw,bt->bw", share_BTW, written_BT) @ self.word_vectors_WD.float()
                reference_BD = self._reference(batch)
            else:
                expected_BD, reference_BD = self.sentences(share_BTW, batch.report_BT[:, 1:])
            distance_B = 1 - F.cosine_similarity(expected_BD, reference_BD, dim=-1)
            # A product rather than a selection: the graph reaches the decoder on every rank, whatever counts.
            return (distance_B * self._comparable(batch)).sum()

    def _reference(self, batch: Batch) -> Tensor:
        """Where the reference reports point in the report space, float32 [B, D]."""
        return self.word_vectors_WD.float()[batch.report_BT].sum(dim=1)

    def _comparable(self, batch: Batch) -> Tensor:
        if self.sentences is None:
            return self._reference(batch).norm(dim=-1) > 0
        return ~torch.isin(batch.report_BT, batch.report_BT.new_tensor(SPECIAL_IDS)).all(dim=1)


class Sentences:
    """Reports of our vocabulary, certain or expected, in a frozen sentence encoder.

    No module, as its encoder is none: nothing of it is trained or saved.

    Raises:
        ValueError: the encoder knows less than half of the words, so it would compare little but their number.
    """

    def __init__(self, encoder: SentenceEncoder, vocabulary: Sequence[str]) -> None:
        self.encoder = encoder
        pieces = [encoder.subword_ids(word) for word in vocabulary]
        for sign in SPECIAL_IDS:
            pieces[sign] = [encoder.unknown]
        words = pieces[len(SPECIAL_IDS) :]
        unknown = sum(encoder.unknown in word for word in words)
        if 2 * unknown > len(words):
            raise ValueError(
                f"loss global_semantic: the encoder '{encoder.name}' does not know {unknown} of the {len(words)} words "
                "of the vocabulary; choose one for the reports' language"
            )
        if unknown:
            log.info("%s does not know %d of the vocabulary's %d words", encoder.name, unknown, len(words))
        self.count_W = torch.tensor([len(word) for word in pieces])
        most = int(self.count_W.max())
        self.piece_WP = torch.tensor([word + word[-1:] * (most - len(word)) for word in pieces])
        self.room = encoder.limit - len(encoder.before) - len(encoder.after)
        self._told = False

    def __call__(self, share_BTW: Tensor, report_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Directions of what is expected (differentiable) and of the reference, each float32 [B, D].

        Args:
            share_BTW: how probable each word is at each place of the reference.
            report_BT: the reference, from its first word on.
        """
        if self.piece_WP.device != report_BT.device:
            self.count_W, self.piece_WP = self.count_W.to(report_BT.device), self.piece_WP.to(report_BT.device)
        reference_BL, mask_BL, exam_M, token_M, piece_M, place_M = self._layout(report_BT)
        reference_BLD = self.encoder.input_embeddings(reference_BL)
        # Place by place of the words' pieces: of all at once, a table of every word would be as large as a model.
        expected_MD = reference_BLD.new_zeros(len(exam_M), reference_BLD.shape[-1])
        for number in range(self.piece_WP.shape[1]):
            mine = (piece_M == number).nonzero().squeeze(1)
            if len(mine):
                vector_WD = self.encoder.input_embeddings(self.piece_WP[:, number])
                share_MW = share_BTW[exam_M[mine], token_M[mine]]
                expected_MD = expected_MD.index_add(0, mine, share_MW @ vector_WD)
        expected_BLD = reference_BLD.index_put((exam_M, place_M), expected_MD)
        with torch.no_grad():
            reference_BD = self.encoder.encode(reference_BLD, mask_BL)
        return self.encoder.encode(expected_BLD, mask_BL), reference_BD

    def _layout(self, report_BT: Tensor) -> tuple[Tensor, ...]:
        """The reference as the encoder reads it, and where each piece of it comes from.

        Returns:
            pieces and mask [B, L]; and of each piece of a word: its exam, its token, its number in the word, and its
            place in the encoder, each long [M].
        """
        before, after = len(self.encoder.before), len(self.encoder.after)
        words_BT = ~torch.isin(report_BT, report_BT.new_tensor((PAD, BOS, EOS)))
        count_BT = self.count_W[report_BT] * words_BT
        first_BT = count_BT.cumsum(dim=1) - count_BT
        kept_BT = torch.minimum(count_BT, (self.room - first_BT).clamp(min=0))
        if not self._told and bool((kept_BT < count_BT).any()):
            self._told = True
            log.warning(
                "%s takes %d pieces: longer reports are compared up to there", self.encoder.name, self.encoder.limit
            )
        length_B = kept_BT.sum(dim=1)
        number_P = torch.arange(self.piece_WP.shape[1], device=report_BT.device)
        exam_M, token_M, piece_M = (number_P < kept_BT[..., None]).nonzero(as_tuple=True)
        place_M = before + first_BT[exam_M, token_M] + piece_M
        longest = before + int(length_B.max()) + after
        reference_BL = report_BT.new_full((len(report_BT), longest), self.encoder.pad)
        reference_BL[:, :before] = report_BT.new_tensor(self.encoder.before)
        end_BL = (before + length_B)[:, None] + torch.arange(after, device=report_BT.device)
        reference_BL.scatter_(1, end_BL, report_BT.new_tensor(self.encoder.after).expand(len(report_BT), after))
        reference_BL[exam_M, place_M] = self.piece_WP[report_BT[exam_M, token_M], piece_M]
        mask_BL = torch.arange(longest, device=report_BT.device) < (before + length_B + after)[:, None]
        return reference_BL, mask_BL, exam_M, token_M, piece_M, place_M

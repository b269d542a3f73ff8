"""Global semantic loss: compares the meaning of the whole report with that of the reference.

After arXiv 2406.00644. Its published code (KMVE_RG/modules/MyTrainer.py) decodes text, compares sentence embeddings and
wraps the similarity in a new tensor, so that no gradient reaches the model. Here the expectation under the decoder's
softmax goes through a differentiable map. Words are sampled only as inputs of the decoder, by the key `own_words`.

Shapes: B exams of this micro-batch, N exams of the micro-batches of all processes, T tokens, W words in the vocabulary,
P subwords of a word, L subwords of a report, M subwords of a batch, D dimensions of the space (for subwords: width of
the encoder's input).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.distributions import Categorical

from framework.distributed.gather_exams import gather_exams
from framework.exam import BOS, EOS, PAD, UNK, Batch, Outputs
from framework.models.external_weights import ExternalWeights
from framework.models.sampling import evaluating
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError
from framework.text.sentence_encoder import SentenceEncoder
from framework.text.vocabulary import require_whole_words

log = logging.getLogger(__name__)
SAME = 1e-6  # distance of two references that are no alternatives to each other
SPECIAL_IDS = (PAD, BOS, EOS, UNK)  # tokens that are not words


@register("loss", "global_semantic")
class GlobalSemantic(nn.Module):
    """One minus the cosine between the decoder's expected report and the reference.

    `lsa` compares bags of words in the report space: the expected word counts go through its linear map, whose word
    vectors are frozen and saved with the model. Exams whose reference has no word of that space are not counted.

    `sentence_encoder` compares embeddings of a frozen pretrained model. At each position of the reference, the softmax
    over the vocabulary gives the expected input embedding, and the sequence of these goes through the encoder. A word
    of the reference takes as many positions as it has subwords. Another word fills these positions with its own
    subwords: it is cut if it has more, and its last subword is repeated if it has fewer. So the encoder reads whole
    subwords at its own positions between its own special tokens, as in its training, and a decoder that is certain of
    the reference has distance 0. (The mean of a word's subwords in one position would be simpler, but the encoder has
    never read such an input, and rare words matter most.) The length of a report is trained by `next_token` alone.
    References without a known word are not counted. The encoder is not trained, saved or exported: training and
    `evaluate` need its files, `predict` does not. It runs in fp32, twice per step: for 16 phantom reports
    all-MiniLM-L6-v2 takes 2.1 s of CPU time.

    `own_words` compares what the decoder expects after words of its own, as in generation: its distribution after the
    reference's words is computed once more, without dropout and gradient; a share of the input words is drawn from it;
    and a second pass of the decoder reads them. Drawn words are inputs only, since decoders take tokens: the gradient
    is that of the second pass. Each step takes two more passes of the decoder. Needs full weights: no zero3, no fsdp.

    `temperature` replaces the distance by a choice: the cross-entropy of the exam's own reference among those of all
    exams of one micro-batch of all processes, by cosines divided by the temperature. So the value depends on
    `train.micro_batch_size`, as that of `contrastive`. References with the same vector are no alternatives.

    Source:
        The global semantic comparison of Li et al. 2024, arXiv 2406.00644, made differentiable here. Sentence
        embeddings: Reimers and Gurevych 2019, arXiv 1908.10084, section 3. Own words: scheduled sampling in two passes,
        Mihaylova and Martins 2019, arXiv 1906.07651. Choice: InfoNCE, van den Oord et al. 2018, arXiv 1807.03748,
        equation 4.

    Args:
        space: where reports are compared.
        encoder: the sentence encoder: a folder, package:NAME/FOLDER of an installed package, or a hub name.
        own_words: share of the decoder's input words that it draws itself; 0: teacher forcing. [share]
        temperature: of the choice among references, such as 0.1; null: the distance to the own reference.
    """

    needs: tuple[str, ...] = ("logits",)

    def __init__(
        self,
        *,
        vocabulary: Sequence[str],
        word_vectors_WD: Tensor,
        space: Literal["lsa", "sentence_encoder"] = "lsa",
        encoder: str | None = None,
        own_words: Fraction = 0.0,
        temperature: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        self.own_words, self.temperature = own_words, temperature
        if own_words:
            self.needs, self.draws = ("decoder",), True
        self.mixes_exams = temperature is not None
        self.sentences: Sentences | None = None
        self.external_weights: ExternalWeights | None = None
        require_whole_words(vocabulary, "losses.global_semantic")
        if space == "sentence_encoder":
            if not encoder:
                raise UserError(
                    "missing-key", "space sentence_encoder needs an encoder", place="losses.global_semantic.encoder",
                    expected="a folder, package:NAME/FOLDER or a name on the model hub",
                )  # fmt: skip
            self.sentences = Sentences(SentenceEncoder(encoder), vocabulary)
            self.external_weights = ExternalWeights(encoder, self.sentences.encoder.folder, frozenset())
            return
        if encoder is not None:
            raise UserError(
                "ignored-setting", f"encoder '{encoder}' has no effect with space {space}",
                place="losses.global_semantic.encoder", hint="Remove it, or set space: sentence_encoder.",
            )  # fmt: skip
        vectors = torch.as_tensor(word_vectors_WD).detach().to(torch.float32, copy=True)
        vectors[list(SPECIAL_IDS)] = 0
        if not vectors.any():
            raise UserError(
                "does-not-fit", f"none of the {len(vectors)} tokens of the vocabulary is a word of the report space",
                place="losses.global_semantic", expected="a tokenizer with the words of the report space",
                hint="Set data.tokenizer: words, or remove this loss.",
            )  # fmt: skip
        self.register_buffer("word_vectors_WD", vectors)

    word_vectors_WD: Tensor  # of `lsa`

    def count(self, batch: Batch) -> Tensor:
        """The number of exams whose reference has a known word: 0-dim float."""
        return self._comparable(batch).sum().float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """1 - cosine, from 0 to 2, or the nats of the choice, summed over the counted exams: 0-dim float32."""
        logits_BTW = self._after_own_words(batch, outputs) if self.own_words else outputs.logits_BTW
        # In half precision a cosine near 1 would lose its gradient.
        with torch.autocast(device_type=logits_BTW.device.type, enabled=False):
            share_BTW = logits_BTW.float().softmax(dim=-1)
            if self.sentences is None:
                assert logits_BTW.shape[-1] == len(self.word_vectors_WD), (logits_BTW.shape, self.word_vectors_WD.shape)
                written_BT = (batch.report_BT[:, 1:] != PAD).float()
                expected_BD = torch.einsum("btw,bt->bw", share_BTW, written_BT) @ self.word_vectors_WD.float()
                reference_BD = self._reference(batch)
            else:
                expected_BD, reference_BD = self.sentences(share_BTW, batch.report_BT[:, 1:])
            if self.temperature is None:
                term_B = 1 - F.cosine_similarity(expected_BD, reference_BD, dim=-1)
            else:
                term_B = self._choice(expected_BD, reference_BD, self._comparable(batch), self.temperature)
            # A product rather than a selection: the graph reaches the decoder on every rank, also with no exam counted.
            return (term_B * self._comparable(batch)).sum()

    def _after_own_words(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Logits [B, T, W] after inputs of which the decoder drew a share of the words itself."""
        decoder, word_BT = outputs.decoder, batch.report_BT[:, :-1]
        with torch.no_grad(), evaluating(decoder):
            logits_BTW = decoder(outputs.features, word_BT)[:, :-1].float()
        logits_BTW[..., [PAD, BOS, EOS]] = float("-inf")  # the report keeps its length
        drawn_BT = Categorical(logits=logits_BTW, validate_args=False).sample()
        after_bos_BT = word_BT[:, 1:]
        taken_BT = torch.rand(after_bos_BT.shape, device=word_BT.device) < self.own_words
        taken_BT &= (after_bos_BT != PAD) & (after_bos_BT != EOS)
        return decoder(outputs.features, torch.cat([word_BT[:, :1], drawn_BT.where(taken_BT, after_bos_BT)], dim=1))

    @staticmethod
    def _choice(expected_BD: Tensor, reference_BD: Tensor, comparable_B: Tensor, temperature: float) -> Tensor:
        """Cross-entropy [B] of each exam's reference among those of all exams."""
        rows_NE, first = gather_exams(torch.cat([F.normalize(reference_BD, dim=-1), comparable_B[:, None]], dim=1))
        reference_ND, comparable_N = rows_NE[:, :-1], rows_NE[:, -1] > 0
        own_B = first + torch.arange(len(expected_BD), device=expected_BD.device)
        barred_BN = (reference_ND[own_B] @ reference_ND.T > 1 - SAME) | ~comparable_N
        barred_BN = barred_BN.scatter(1, own_B[:, None], False)
        logits_BN = (F.normalize(expected_BD, dim=-1) @ reference_ND.T / temperature).masked_fill(barred_BN, -torch.inf)
        return F.cross_entropy(logits_BN, own_B, reduction="none")

    def _reference(self, batch: Batch) -> Tensor:
        """Vectors of the reference reports in the report space, float32 [B, D]."""
        return self.word_vectors_WD.float()[batch.report_BT].sum(dim=1)

    def _comparable(self, batch: Batch) -> Tensor:
        if self.sentences is None:
            return self._reference(batch).norm(dim=-1) > 0
        return ~torch.isin(batch.report_BT, batch.report_BT.new_tensor(SPECIAL_IDS)).all(dim=1)


class Sentences:
    """Embeds reports, given as tokens or as distributions over the vocabulary, by a frozen sentence encoder.

    Not a module, so that nothing of it is trained or saved.

    Raises:
        UserError: the encoder knows less than half of the words, so it would compare little but their number.
    """

    def __init__(self, encoder: SentenceEncoder, vocabulary: Sequence[str]) -> None:
        self.encoder = encoder
        subwords = [encoder.subword_ids(word) for word in vocabulary]
        for special in SPECIAL_IDS:
            subwords[special] = [encoder.unknown]
        words = subwords[len(SPECIAL_IDS) :]
        unknown = sum(encoder.unknown in word for word in words)
        if 2 * unknown > len(words):
            raise UserError(
                "does-not-fit", f"'{encoder.name}' does not know {unknown} of the {len(words)} words of the vocabulary",
                place="losses.global_semantic.encoder", hint="Choose an encoder for the language of the reports.",
            )  # fmt: skip
        if unknown:
            log.info("%s does not know %d of the vocabulary's %d words", encoder.name, unknown, len(words))
        self.count_W = torch.tensor([len(word) for word in subwords])
        most = int(self.count_W.max())
        self.subword_WP = torch.tensor([word + word[-1:] * (most - len(word)) for word in subwords])
        self.max_subwords = encoder.limit - len(encoder.before) - len(encoder.after)
        self._warned_of_length = False

    def __call__(self, share_BTW: Tensor, report_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the expected report (differentiable) and of the reference, each float32 [B, D].

        Args:
            share_BTW: probabilities of the words at each position of the reference.
            report_BT: the reference without BOS.
        """
        if self.subword_WP.device != report_BT.device:
            self.count_W, self.subword_WP = self.count_W.to(report_BT.device), self.subword_WP.to(report_BT.device)
        reference_BL, mask_BL, exam_M, token_M, subword_M, position_M = self._layout(report_BT)
        reference_BLD = self.encoder.input_embeddings(reference_BL)
        # In a loop over subword positions: a table of all subwords of all words would be as large as a model.
        expected_MD = reference_BLD.new_zeros(len(exam_M), reference_BLD.shape[-1])
        for number in range(self.subword_WP.shape[1]):
            index = (subword_M == number).nonzero().squeeze(1)
            if len(index):
                vector_WD = self.encoder.input_embeddings(self.subword_WP[:, number])
                share_MW = share_BTW[exam_M[index], token_M[index]]
                expected_MD = expected_MD.index_add(0, index, share_MW @ vector_WD)
        expected_BLD = reference_BLD.index_put((exam_M, position_M), expected_MD)
        with torch.no_grad():
            reference_BD = self.encoder.encode(reference_BLD, mask_BL)
        return self.encoder.encode(expected_BLD, mask_BL), reference_BD

    def _layout(self, report_BT: Tensor) -> tuple[Tensor, ...]:
        """The reference as input of the encoder, and the origin of each subword.

        Returns:
            subword ids and mask [B, L]; and for each subword of a word: its exam, its token, its number in the word,
            and its position in the input, each long [M].
        """
        before, after = len(self.encoder.before), len(self.encoder.after)
        words_BT = ~torch.isin(report_BT, report_BT.new_tensor((PAD, BOS, EOS)))
        count_BT = self.count_W[report_BT] * words_BT
        first_BT = count_BT.cumsum(dim=1) - count_BT
        kept_BT = torch.minimum(count_BT, (self.max_subwords - first_BT).clamp(min=0))
        if not self._warned_of_length and bool((kept_BT < count_BT).any()):
            self._warned_of_length = True
            log.warning("%s reads at most %d subwords: longer reports are cut", self.encoder.name, self.encoder.limit)
        length_B = kept_BT.sum(dim=1)
        number_P = torch.arange(self.subword_WP.shape[1], device=report_BT.device)
        exam_M, token_M, subword_M = (number_P < kept_BT[..., None]).nonzero(as_tuple=True)
        position_M = before + first_BT[exam_M, token_M] + subword_M
        longest = before + int(length_B.max()) + after
        reference_BL = report_BT.new_full((len(report_BT), longest), self.encoder.pad)
        reference_BL[:, :before] = report_BT.new_tensor(self.encoder.before)
        end_BL = (before + length_B)[:, None] + torch.arange(after, device=report_BT.device)
        reference_BL.scatter_(1, end_BL, report_BT.new_tensor(self.encoder.after).expand(len(report_BT), after))
        reference_BL[exam_M, position_M] = self.subword_WP[report_BT[exam_M, token_M], subword_M]
        mask_BL = torch.arange(longest, device=report_BT.device) < (before + length_B + after)[:, None]
        return reference_BL, mask_BL, exam_M, token_M, subword_M, position_M

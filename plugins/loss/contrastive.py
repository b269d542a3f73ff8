"""The term that draws an exam's images and its report together, and away from the reports of other exams.

Shapes: B exams of this micro-batch, N of the micro-batches of all processes, T tokens, D width of what is compared,
E twice that.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from framework.distributed.gather_exams import gather_exams
from framework.exam import BOS, EOS, PAD, Batch, Outputs
from framework.registry import register

LEAST_TEMPERATURE = 0.01  # as CLIP bounds it, for steadiness


@register("loss", "contrastive")
class Contrastive(nn.Module):
    """Which report belongs to an exam's images, and which images to its report, among all exams that are there.

    The pooled features and the mean of learned embeddings of the report's words are each projected to `width` and
    brought to length 1; the term is half the cross-entropy of finding the report by the images, and half that of
    finding the images by the report, from cosines over a temperature that is learned. The decoder has no part in it.

    The others are the exams of one micro-batch of all processes, so its value depends on `train.micro_batch_size` and
    the number of processes, as batch normalization does: with one micro-batch a step, any number of
    processes gives what one gives. Accumulation does not add exams to compare with.

    Source:
        InfoNCE: van den Oord et al. 2018, arXiv 1807.03748, equation 4; both ways, between images and reports:
        Zhang et al. 2020 (ConVIRT), arXiv 2010.00747, equations 2 to 4; learned temperature: Radford et al. 2021
        (CLIP), arXiv 2103.00020, section 2.4.

    Args:
        width: of the space in which images and reports are compared. [channels]
        temperature: what cosines are divided by, at the start; from 0.01, where it is held while it learns.
        mask_same: an exam whose report is word for word the same is left out of the others, as it is no wrong answer.
    """

    needs = ("pooled",)
    mixes_exams = True

    def __init__(
        self,
        *,
        vocabulary_size: PositiveInt,
        feature_width: PositiveInt,
        width: PositiveInt = 256,
        temperature: PositiveFloat = 0.07,
        mask_same: bool = True,
    ) -> None:
        super().__init__()
        if temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"loss contrastive: temperature is {temperature:g}, and none below {LEAST_TEMPERATURE:g} is used; "
                f"expected at least {LEAST_TEMPERATURE:g}"
            )
        self.mask_same = mask_same
        self.words = nn.Embedding(vocabulary_size, width)
        self.report = nn.Linear(width, width)
        self.image = nn.Linear(feature_width, width)
        # Of one value, as fsdp cuts no parameter without dimensions.
        self.log_scale_1 = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def count(self, batch: Batch) -> Tensor:
        """The number of exams: 0-dim float."""
        return batch.report_BT.new_tensor(len(batch.exam_ids)).float()

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Nats, summed over this micro-batch's exams, among those of all processes: 0-dim float32."""
        pooled_BD = outputs.features.pooled_BD
        # A cosine over a small temperature asks for more digits than half precision has.
        with torch.autocast(device_type=pooled_BD.device.type, enabled=False):
            image_BD = F.normalize(self.image(pooled_BD.float()), dim=-1)
            report_BD = F.normalize(self.report(self._mean_word(batch.report_BT)), dim=-1)
            both_NE, first = gather_exams(torch.cat((image_BD, report_BD), 1))  # at once: processes wait a single time
            image_ND, report_ND = both_NE.chunk(2, 1)
            barred_BN = self._same(batch.report_BT) if self.mask_same else None
            target_B = first + torch.arange(len(image_BD), device=image_BD.device)
            total = image_BD.new_zeros(())
            for own_BD, others_ND in ((image_BD, report_ND), (report_BD, image_ND)):
                logits_BN = own_BD @ others_ND.T * self._scale()
                if barred_BN is not None:
                    logits_BN = logits_BN.masked_fill(barred_BN, float("-inf"))
                total = total + F.cross_entropy(logits_BN, target_B, reduction="sum") / 2
            return total

    def _mean_word(self, report_BT: Tensor) -> Tensor:
        """[B, D]; 0 of a report without words."""
        word_BT1 = ((report_BT != PAD) & (report_BT != BOS) & (report_BT != EOS))[..., None]
        return (self.words(report_BT).float() * word_BT1).sum(1) / word_BT1.sum(1).clamp(min=1)

    def _scale(self) -> Tensor:
        """One over the temperature. Where it is held at the bound, its gradient still brings it back."""
        held_1 = self.log_scale_1.clamp(max=-math.log(LEAST_TEMPERATURE))
        return (self.log_scale_1 + (held_1 - self.log_scale_1).detach()).exp()

    @staticmethod
    def _same(report_BT: Tensor) -> Tensor:
        """[B, N], True where another exam has the same report."""
        report_NT, first = gather_exams(report_BT, pad=PAD)
        own = slice(first, first + len(report_BT))
        same_BN = (report_NT[own, None] == report_NT[None]).all(-1)
        place_N = torch.arange(len(report_NT), device=report_NT.device)
        return same_BN & (place_N[own, None] != place_N[None])

"""Contrastive loss between the images and the report of an exam.

Shapes: B exams of this micro-batch, N exams of the micro-batches of all processes, T tokens, D embedding width,
E = 2 D.
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
from framework.runtime.errors import UserError

LEAST_TEMPERATURE = 0.01  # the bound of CLIP, for stability


@register("loss", "contrastive")
class Contrastive(nn.Module):
    """InfoNCE between images and reports, as in CLIP.

    The pooled features and the mean of learned embeddings of the report's words are each projected to `width` and
    normalized to length 1. The loss is the mean of two cross-entropies, image to report and report to image, over
    cosines divided by a learned temperature. The decoder takes no part.

    The negatives are the other exams of one micro-batch of all processes, so the value depends on
    `train.micro_batch_size` and the number of processes, as batch normalization does. With one micro-batch per step,
    any number of processes gives the same value. Gradient accumulation adds no negatives.

    Source:
        InfoNCE: van den Oord et al. 2018, arXiv 1807.03748, equation 4; both ways, between images and reports:
        Zhang et al. 2020 (ConVIRT), arXiv 2010.00747, equations 2 to 4; learned temperature: Radford et al. 2021
        (CLIP), arXiv 2103.00020, section 2.4.

    Args:
        width: width of the joint embedding space. [channels]
        temperature: initial temperature; at least 0.01, which also bounds it during training.
        mask_same: exclude exams with an identical report from the negatives.
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
            raise UserError(
                "out-of-range", f"temperature is {temperature:g}", place="losses.contrastive.temperature",
                expected=f"at least {LEAST_TEMPERATURE:g}",
            )  # fmt: skip
        self.mask_same = mask_same
        self.words = nn.Embedding(vocabulary_size, width)
        self.report = nn.Linear(width, width)
        self.image = nn.Linear(feature_width, width)
        # One dimension, since fsdp does not shard 0-dim parameters.
        self.log_scale_1 = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def count(self, batch: Batch) -> Tensor:
        """The number of exams: 0-dim float."""
        return batch.report_BT.new_full((), len(batch.exam_ids), dtype=torch.float32)

    def forward(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Nats, summed over this micro-batch's exams, with the negatives of all processes: 0-dim float32."""
        pooled_BD = outputs.features.pooled_BD
        # Half precision is too coarse for a cosine divided by a small temperature.
        with torch.autocast(device_type=pooled_BD.device.type, enabled=False):
            image_BD = F.normalize(self.image(pooled_BD.float()), dim=-1)
            report_BD = F.normalize(self.report(self._mean_word(batch.report_BT)), dim=-1)
            both_NE, first = gather_exams(torch.cat((image_BD, report_BD), 1))  # one collective for both
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
        """[B, D]; 0 for a report without words."""
        word_BT1 = ((report_BT != PAD) & (report_BT != BOS) & (report_BT != EOS))[..., None]
        return (self.words(report_BT).float() * word_BT1).sum(1) / word_BT1.sum(1).clamp(min=1)

    def _scale(self) -> Tensor:
        """1 / temperature, clamped at the bound with a straight-through gradient."""
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

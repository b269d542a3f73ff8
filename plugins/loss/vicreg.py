"""VICReg: trains the encoder without reports, by what two augmentations of a view have in common.

Shapes: M views of this micro-batch, N views of the micro-batches of all processes, F width of the features, D width of
the embedding, E = 2 D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from framework.distributed.gather_exams import gather_exams
from framework.exam import Batch, Outputs, Term
from framework.registry import register

EPSILON = 1e-4  # added to a variance before its root


@register("loss", "vicreg")
class VICReg(nn.Module):
    """Variance-invariance-covariance regularization: self-supervision of the encoder, which reads no report.

    The two augmentations of a view that `data.augment` draws should have the same embedding (invariance), while each
    dimension of the embedding keeps a standard deviation of 1 over the views (variance), and no two dimensions say the
    same (covariance). The last two prevent a collapse, in which all views have one embedding. Three layers make the
    embedding from the pooled features of a view, which is encoded as an exam of its own. They are not exported.

    Variance and covariance are those of one micro-batch of all processes, so the value depends on
    `train.micro_batch_size`, as with batch normalization. With one micro-batch per step, any number of processes gives
    the same value. Layer normalization replaces the batch normalization of the published expander for this reason, and
    as batches are small.

    Metrics: `invariance`, the mean squared distance of the two embeddings; `embedding_std` and `feature_std`, the
    standard deviation over the views of embeddings and of encoder features that are scaled to length 1, times the root
    of their width: 1 if they spread in all directions alike, and 0 if they collapse.

    Source:
        Bardes, Ponce and LeCun 2022, arXiv 2105.04906, equations 1 to 6, with the means and default factors of the
        published code. The standard deviation of scaled outputs: Chen and He 2021, arXiv 2011.10566, figure 2.

    Args:
        width: width of the embedding and of the two layers below it. The covariances of few views keep the variance of
            many dimensions small, so small batches need a smaller width than the published 8192. [channels]
        invariance: factor of the mean squared distance of the two embeddings of a view.
        variance: factor of the mean shortfall of standard deviations below 1.
        covariance: factor of the squared covariances.
    """

    needs = ("copies",)
    mixes_exams = True

    def __init__(
        self,
        *,
        feature_width: PositiveInt,
        width: PositiveInt = 128,
        invariance: NonNegativeFloat = 25.0,
        variance: NonNegativeFloat = 25.0,
        covariance: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        layers: list[nn.Module] = []
        for before in (feature_width, width):
            layers += [nn.Linear(before, width), nn.LayerNorm(width), nn.ReLU()]
        self.expander = nn.Sequential(*layers, nn.Linear(width, width, bias=False))

    def count(self, batch: Batch) -> Tensor:
        """The number of views: 0-dim float."""
        return batch.view_mask_BV.sum().float()

    def forward(self, batch: Batch, outputs: Outputs) -> Term:
        """The three weighted parts, times the views of this micro-batch: 0-dim float32."""
        features_2MF: Tensor = outputs.copies_2MD
        # Half precision is too coarse for variances of nearly equal embeddings.
        with torch.autocast(device_type=features_2MF.device.type, enabled=False):
            features_2MF = features_2MF.float()
            own_2MD = self.expander(features_2MF)
            all_2ND = _gathered(own_2MD)
            views = own_2MD.shape[1]
            distance = (own_2MD[0] - own_2MD[1]).square().mean(-1).sum()
            shortfall, covariance = torch.stack([_regularizers(each_ND) for each_ND in all_2ND]).unbind(1)
            spread = self.variance * shortfall.mean() + self.covariance * covariance.sum()
            total = self.invariance * distance + views * spread
        metrics = {
            "invariance": distance,
            "embedding_std": views * _relative_std(all_2ND.flatten(0, 1)),
            "feature_std": views * _relative_std(_gathered(features_2MF.detach()).flatten(0, 1)),
        }
        return Term(total, metrics)


def _gathered(rows_2MX: Tensor) -> Tensor:
    """The rows of all processes, [2, N, X]."""
    rows_NE, _ = gather_exams(torch.cat(rows_2MX.unbind(), 1))
    return torch.stack(rows_NE.chunk(2, 1))


def _regularizers(embedding_ND: Tensor) -> Tensor:
    """The mean shortfall of standard deviations below 1, and the squared covariances divided by the width: [2].

    With a single view, the deviations are 0, without a gradient.
    """
    views, width = embedding_ND.shape
    centred_ND = embedding_ND - embedding_ND.mean(0)
    covariance_DD = centred_ND.T @ centred_ND / max(views - 1, 1)
    variance_D = covariance_DD.diagonal()
    shortfall = F.relu(1 - (variance_D + EPSILON).sqrt()).mean()
    return torch.stack([shortfall, (covariance_DD.square().sum() - variance_D.square().sum()) / width])


def _relative_std(rows_NX: Tensor) -> Tensor:
    return F.normalize(rows_NX.detach(), dim=-1).std(0).mean() * rows_NX.shape[-1] ** 0.5

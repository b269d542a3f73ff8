"""Each contract check catches plugins that break one rule, and names it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import ROOT, problem
from torch import nn

from framework.exam import EOS, PAD, Features, Term
from framework.grid.executor import Job
from framework.registry import KINDS
from framework.testing import CHECKS, ContractError, check, check_encoder, plugin
from framework.testing.contract import build_plugin
from framework.testing.scaffold import TEMPLATES

TEMPLATE: dict[str, Any] = {kind: plugin(TEMPLATES / f"{kind}.py", kind, f"my_{kind}") for kind in KINDS}
MUTANTS: list[Any] = []
Encoder, Decoder, Loss, Distiller = (TEMPLATE[kind] for kind in ("encoder", "decoder", "loss", "distiller"))
Dataset, Tokenizer, Augment, Metric = (TEMPLATE[kind] for kind in ("dataset", "tokenizer", "augment", "metric"))
Executor = TEMPLATE["executor"]
Handle = sys.modules[Executor.__module__].MyHandle


def breaks(kind: str, rule: str, **settings: Any) -> Callable[[Any], Any]:
    """Marks a plugin that breaks this rule of its kind, and no earlier one; `settings` are those of the check."""

    def mark(plugin: Any) -> Any:
        MUTANTS.append(pytest.param(kind, plugin, rule, settings, id=f"{kind}: {plugin.__name__}"))
        return plugin

    return mark


# --- encoders


@breaks("encoder", "`width` is the width")
class NoWidth(Encoder):
    def __init__(self, *, channels: int) -> None:
        super().__init__(channels=channels)
        del self.width


@breaks("encoder", "gives pooled returns pooled_BD")
class WrongWidth(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD[:, :3])


@breaks("encoder", "`gives` lists features of an encoder")
class GivesSomethingElse(Encoder):
    gives = ("patches", "thoughts")


@breaks("encoder", "the pixels of a missing view have no effect")
class LeaksGap(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD + image.mean((1, 2, 3, 4))[:, None])


@breaks("encoder", "the pixels of a missing view have no effect, in training")
class GapMovesStatistics(Encoder):
    def forward(self, image, mask):
        return super().forward(image - image.mean() if self.training else image, mask)


@breaks("encoder", "patches of a missing view are masked")
class MasksNothing(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(patch_mask_BN=torch.ones_like(seen.patch_mask_BN))


@breaks("encoder", "exams are independent")
class MixesExams(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD - seen.pooled_BD.mean(0))


@breaks("encoder", "exams are independent")
class CountsMissingViews(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.patches_BND.mean(1))


@breaks("encoder", "a gradient reaches every trainable parameter")
class Idle(Encoder):
    def __init__(self, *, channels: int) -> None:
        super().__init__(channels=channels)
        self.idle = nn.Linear(2, 2)


@breaks("encoder", "a gradient reaches every trainable parameter")
class Detached(Encoder):
    def forward(self, image, mask):
        return Features(*(value.detach() for value in super().forward(image, mask)))


@breaks("encoder", "the same seed builds the same module")
class OwnSeed(Encoder):
    draws = itertools.count()

    def __init__(self, *, channels: int) -> None:
        super().__init__(channels=channels)
        draw = torch.Generator().manual_seed(next(self.draws))
        self.register_buffer("noise_D", torch.randn(self.width, generator=draw))

    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD + self.noise_D)


@breaks("encoder", "the same seed gives the same training output")
class OwnDropout(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD * (np.random.default_rng().random() if self.training else 1))


@breaks("encoder", "in eval mode the same input gives the same output")
class AlwaysDrops(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=nn.functional.dropout(seen.pooled_BD))


@breaks("encoder", "a state_dict restores")
class BufferNotRegistered(Encoder):
    def __init__(self, *, channels: int) -> None:
        super().__init__(channels=channels)
        self.offset_D = torch.randn(self.width)

    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD + self.offset_D.to(seen.pooled_BD.device))


@breaks("encoder", "all tensors move with .to(device)")
class ConstantOnTheCpu(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD + torch.ones(self.width))


@breaks("encoder", "outputs are finite under bfloat16 autocast")
class Overflows(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        half = torch.is_autocast_enabled("cpu")
        return seen._replace(pooled_BD=seen.pooled_BD / (0.0 if half else 1.0))


class HasStages(Encoder):
    """A valid `stages()`: the map of patches, then the norm."""

    def stages(self):
        return [[*self.embed.parameters()], [self.position_VD, *self.norm.parameters()]]


@breaks("encoder", "stages() returns every parameter once")
class LeavesItsNormOut(HasStages):
    def stages(self):
        return super().stages()[:1]


@breaks("encoder", "stages() returns every parameter once")
class GivesItsNormTwice(HasStages):
    def stages(self):
        return [*super().stages(), [*self.norm.parameters()]]


@breaks("encoder", "stages() returns every parameter once")
class StagesOfAnother(HasStages):
    def stages(self):
        return [*super().stages(), [nn.Parameter(torch.ones(1))]]


@breaks("encoder", "stages() returns every parameter once")
class FlatStages(HasStages):
    def stages(self):
        return [weight for stage in super().stages() for weight in stage]


# --- decoders


@breaks("decoder", "forward returns logits [B, T, W]")
class ForgetsAWord(Decoder):
    def forward(self, features, tokens):
        return super().forward(features, tokens)[..., :-1]


@breaks("decoder", "pooled_BD (not in `needs`) was touched")
class LooksAtPooled(Decoder):
    def init_cache(self, features):
        cache = super().init_cache(features)
        return {**cache, "hidden": cache["hidden"] + features.pooled_BD.mean(1, keepdim=True)}


@breaks("decoder", "a logit does not depend on later tokens")
class SeesTheFuture(Decoder):
    def forward(self, features, tokens):
        return super().forward(features, tokens) + self.embed_tokens(tokens).mean((1, 2))[:, None, None]


@breaks("decoder", "exams are independent")
class MixesReports(Decoder):
    def forward(self, features, tokens):
        logits = super().forward(features, tokens)
        return logits - logits.mean(0)


@breaks("decoder", "masked patches have no effect")
class SeesPadding(Decoder):
    def init_cache(self, features):
        return super().init_cache(features._replace(patch_mask_BN=torch.ones_like(features.patch_mask_BN)))


class Attends(Decoder):
    """A decoder that offers equal weights of all patches."""

    def attention(self, features, tokens):
        weights = features.patch_mask_BN[:, None].float().expand(-1, tokens.shape[1], -1)
        return weights / weights.sum(-1, keepdim=True)


@breaks("decoder", "attention returns the weight of each patch for each logit")
class AttendsByExam(Attends):
    def attention(self, features, tokens):
        return super().attention(features, tokens)[:, 0]


@breaks("decoder", "weights are at least 0 and sum to 1")
class AttendsByScores(Attends):
    def attention(self, features, tokens):
        return super().attention(features, tokens).log()


@breaks("decoder", "masked patches have weight 0")
class AttendsToPadding(Attends):
    def attention(self, features, tokens):
        return torch.ones_like(super().attention(features, tokens)) / features.patches_BND.shape[1]


@breaks("decoder", "a weight does not depend on later tokens")
class AttendsToTheFuture(Attends):
    def attention(self, features, tokens):
        scores = torch.rand(3, 1, 5, generator=torch.Generator().manual_seed(int(tokens[0, -1]))) + 0.1
        weights = super().attention(features, tokens) * scores
        return weights / weights.sum(-1, keepdim=True)


@breaks("decoder", "attention changes nothing")
class AttentionTrains(Attends):
    def attention(self, features, tokens):
        self.lm_head.bias.data += 1
        return super().attention(features, tokens)


@breaks("decoder", "step with a cache equals forward")
class CacheForgets(Decoder):
    def step(self, tokens, cache):
        logits, new = super().step(tokens, cache)
        return logits, {**new, "hidden": cache["hidden"]}


@breaks("decoder", "after beams are reordered")
class CacheInSelf(Decoder):
    def init_cache(self, features):
        self.kept = super().init_cache(features)
        return {"image": self.kept["image"]}

    def step(self, tokens, cache):
        rows = self.kept["hidden"]
        hidden = rows if len(rows) == len(tokens) else rows.mean(0, keepdim=True).expand(len(tokens), -1)
        logits, self.kept = super().step(tokens, {**cache, "hidden": hidden})
        return logits, cache

    def forward(self, features, tokens):
        return self._run(tokens, Decoder.init_cache(self, features))[0]


@breaks("decoder", "a gradient reaches patches_BND")
class NoGradientToFeatures(Decoder):
    def init_cache(self, features):
        return super().init_cache(features._replace(patches_BND=features.patches_BND.detach()))


# --- losses


@breaks("loss", "`needs` names what a loss looks at")
class SaysNothing(Loss):
    needs = ()


@breaks("loss", "a loss looks at what its `needs` declares")
class LooksFurther(Loss):
    def forward(self, batch, outputs):
        return super().forward(batch, outputs) + outputs.features.pooled_BD.sum()


@breaks("loss", "a loss looks at what its `needs` declares")
class WantsTopics(Loss):
    def count(self, batch):
        return batch.topic_B.new_tensor(len(batch.topic_B))


@breaks("loss", "targets(reports) gives an array with one row")
class TargetsOfDistinctReports(Loss):
    registered = ("loss", "mine")

    def targets(self, reports):
        return np.array(sorted({len(report) for report in reports if report}))


@breaks("loss", "targets of a report depend on it alone")
class TargetsAmongTheOthers(TargetsOfDistinctReports):
    def targets(self, reports):
        return np.array([len(report) for report in reports]) / max(map(len, reports))


@breaks("loss", "sums of 3 parts add up")
class Mean(Loss):
    def forward(self, batch, outputs):
        return super().forward(batch, outputs) / len(batch.exam_ids)


@breaks("loss", "sums of 3 parts add up")
class ComparesExamsUntold(Loss):
    def forward(self, batch, outputs):
        mean = outputs.logits_BTW.float().mean()
        return super().forward(batch, outputs) + len(batch.exam_ids) * (mean - 1) ** 2


@breaks("loss", "counts of 3 parts without")
class ComparesExamsAndCountsPadding(ComparesExamsUntold):
    mixes_exams = True

    def count(self, batch):
        return batch.report_BT.new_tensor(batch.report_BT.numel())


@breaks("loss", "a loss takes a batch of one exam")
class ComparesWithTheNext(ComparesExamsUntold):
    mixes_exams = True

    def forward(self, batch, outputs):
        return super().forward(batch, outputs) + 0 * outputs.logits_BTW[1].sum()


@breaks("loss", "in eval mode the same input gives the same output")
class DrawsUntold(Loss):
    def forward(self, batch, outputs):
        return super().forward(batch, outputs) * torch.rand(())


@breaks("loss", "counts of 3 parts without the padding that they do not need add up")
class CountsPadding(Loss):
    def count(self, batch):
        return batch.report_BT.new_tensor(batch.report_BT.numel())


@breaks("loss", "what is written after the end of a report changes nothing")
class LearnsPadding(Loss):
    def forward(self, batch, outputs):
        gone_BT1 = (batch.report_BT[:, 1:] == PAD)[..., None]
        return super().forward(batch, outputs) + (gone_BT1 * (outputs.logits_BTW.abs() - 8).relu()).sum()


@breaks("loss", "a loss leaves batch and outputs as they are")
class WritesIntoLogits(Loss):
    def forward(self, batch, outputs):
        with torch.no_grad():
            outputs.logits_BTW.clamp_(-1, 1)
        return super().forward(batch, outputs)


class WithMetrics(Loss):
    """Keeps the contract of metrics: a sum over the exams of the batch."""

    def metrics(self, batch):
        return {"words": (batch.report_BT != PAD).sum().float()}

    def forward(self, batch, outputs):
        return Term(super().forward(batch, outputs), self.metrics(batch))


@breaks("loss", "a metric is one number")
class MetricOfRows(WithMetrics):
    def metrics(self, batch):
        return {"words": (batch.report_BT != PAD).sum(1).float()}


@breaks("loss", "metrics have the same names for every batch")
class MetricNowAndThen(WithMetrics):
    def metrics(self, batch):
        found = super().metrics(batch)
        return found if found["words"] > 20 else {}


@breaks("loss", "metrics of parts add up to those of the batch")
class MetricOfAllBefore(WithMetrics):
    total = 0

    def metrics(self, batch):
        self.total = super().metrics(batch)["words"] + self.total
        return {"words": self.total}


@breaks("loss", "half precision keeps the sum")
class SumsInHalf(Loss):
    def forward(self, batch, outputs):
        kind = outputs.logits_BTW.dtype
        return super().forward(batch, outputs).to(kind)


@breaks("loss", "a gradient reaches logits")
class NoGradient(Loss):
    def __init__(self) -> None:
        super().__init__()
        self.scale_weight = nn.Parameter(torch.ones(1))

    def forward(self, batch, outputs):
        logits = outputs.logits_BTW.detach()
        return super().forward(batch, replace(outputs, logits_BTW=logits)) * self.scale_weight[0]


# --- data


@dataclass
class OpenFile:
    """A view that holds what does not pickle."""

    view: Any

    def __post_init__(self) -> None:
        self.name, self.read = self.view.name, lambda: self.view.load()

    def load(self):
        return self.read()


@dataclass(frozen=True)
class Flickers:
    view: Any
    name: str = "flickers"

    def load(self):
        return self.view.load() + np.random.default_rng().integers(0, 3, (64, 64), dtype=np.uint8)


@dataclass(frozen=True)
class Floats:
    view: Any
    name: str = "floats"

    def load(self):
        return self.view.load() / 255


class Seen(Dataset):
    """Exams with views of another class."""

    wrap: Any

    def splits(self):
        def other(exam):
            return replace(exam, views=tuple(self.wrap(view) for view in exam.views))

        return {name: [other(exam) for exam in exams] for name, exams in super().splits().items()}


@breaks("dataset", "views can be pickled for worker processes")
class DoesNotPickle(Seen):
    wrap = OpenFile


@breaks("dataset", "loads the same twice")
class ViewsFlicker(Seen):
    wrap = Flickers


@breaks("dataset", "every view loads as a grayscale or RGB image")
class FloatImages(Seen):
    wrap = Floats


@breaks("dataset", "splits() returns train, val and test")
class NoTest(Dataset):
    def splits(self):
        return {name: exams for name, exams in super().splits().items() if name != "test"}


@breaks("dataset", "a patient appears in only one split")
class SharesPatients(Dataset):
    def splits(self):
        return {name: [replace(exam, patient="one") for exam in exams] for name, exams in super().splits().items()}


@breaks("dataset", "an exam is a framework.exam.Exam")
class NoReport(Dataset):
    def splits(self):
        return {name: [replace(exam, report=" ") for exam in exams] for name, exams in super().splits().items()}


@breaks("dataset", "the same keys give the same exams")
class AnotherOrder(Dataset):
    made = itertools.count()

    def __init__(self) -> None:
        super().__init__(seed=next(self.made))


@breaks("dataset", "cache_key identifies the content")
class KeyOfTheMoment(Dataset):
    @property
    def cache_key(self):
        return str(id(self))


@breaks("tokenizer", "encode returns ids from BOS to EOS")
class NoEnd(Tokenizer):
    def encode(self, text, max_length=None):
        return super().encode(text, max_length)[:-1]


@breaks("tokenizer", "returns at most max_length ids")
class TooLong(Tokenizer):
    def encode(self, text, max_length=None):
        return super().encode(text, max_length and max_length + 1)


@breaks("tokenizer", "encode returns ids from BOS to EOS")
class NoUnknownWords(Tokenizer):
    def encode(self, text, max_length=None):
        for character in text:
            self._ids[character]
        return super().encode(text, max_length)


@breaks("tokenizer", "decoded text encodes to the same ids")
class LosesSpaces(Tokenizer):
    def decode(self, ids):
        return super().decode(ids).replace(" ", "")


@breaks("tokenizer", "decode stops at the first EOS")
class GoesOn(Tokenizer):
    def decode(self, ids):
        return super().decode([number for number in ids if number != EOS])


@breaks("tokenizer", "load restores what save wrote")
class ForgetsItsOrder(Tokenizer):
    @classmethod
    def load(cls, path):
        found = super().load(path)
        found._set([*found.vocabulary[:4], *reversed(found.vocabulary[4:])])
        return found


@breaks("tokenizer", "segment(text) returns words, also before fit")
class SegmentsAfterFit(Tokenizer):
    def segment(self, text):
        return [word for word in text.split() if self._ids]


# --- the rest of training


@breaks("augment", "the same seeds give the same images")
class OwnDraws(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, [int(torch.randint(2**31, ())) for _ in seeds])


@breaks("augment", "an exam alone is augmented as in a batch")
class OneSeedForAll(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, [seeds[0]] * len(seeds))


@breaks("augment", "images stay between 0 and 1")
class TooBright(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, seeds) + 0.5


@breaks("augment", "the input images are not modified")
class InPlace(Augment):
    def __call__(self, image, seeds):
        return image.copy_(super().__call__(image, seeds))


@breaks("augment", "images keep their shape")
class Crops(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, seeds)[..., 1:]


@breaks("augment", "all tensors are on the device of the images")
class MaskOnTheCpu(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, seeds) * torch.ones(32, 32)


@breaks("distiller", "topic_count is set before fit")
class CountsLater(Distiller):
    def __init__(self, *, segment, seed) -> None:
        super().__init__(segment=segment, seed=seed)
        del self.topic_count


@breaks("distiller", "fit keeps the topic_count set before")
class FindsMore(Distiller):
    def fit(self, texts):
        self.topic_count += 2
        super().fit(texts)


@breaks("distiller", "or sets it")
class NeverCounts(Distiller):
    def __init__(self, *, segment, seed) -> None:
        super().__init__(segment=segment, seed=seed)
        self.topic_count = None

    def fit(self, texts):
        self.topic_count = 3
        super().fit(texts)
        self.topic_count = None


@breaks("distiller", "assign does not change the topics")
class RefitsInAssign(Distiller):
    """Only looks at its training reports while it describes them."""

    def assign(self, texts):
        known, self._texts = self._texts, list(texts)
        if texts is not known:
            super().fit(texts)
        self._texts = known
        return super().assign(texts)


@breaks("distiller", "the weights of a report sum to 1")
class WeightsDoNotAddUp(Distiller):
    def assign(self, texts):
        labels, weights = super().assign(texts)
        return labels, weights * 2


@breaks("distiller", "topics are numbered from 0")
class CountsFromOne(Distiller):
    def assign(self, texts):
        labels, weights = super().assign(texts)
        return labels + 1, weights


@breaks("distiller", "the topic of a report has its largest weight")
class AnotherTopic(Distiller):
    def assign(self, texts):
        labels, weights = super().assign(texts)
        return (labels + 1) % 3, weights


@breaks("distiller", "describe returns a description of every topic")
class LeavesOneOut(Distiller):
    def describe(self):
        return super().describe()[:-1]


@breaks("distiller", "the same seed gives the same topics")
class DrawsAnew(Distiller):
    made = itertools.count()

    def fit(self, texts):
        super().fit(texts)
        self._thresholds = self._thresholds + next(self.made)


@breaks("metric", "a metric returns the values in `names`")
class OtherNames(Metric):
    names = ("another",)


@breaks("metric", "the references score at least as well")
class TurnedAround(Metric):
    higher_is_better = False


@breaks("metric", "including empty ones")
class DividesByLength(Metric):
    def _ratio(self, written, expected):
        return expected / written


@breaks("metric", "the order of reports has no effect")
class FirstCounts(Metric):
    def __call__(self, pairs):
        return super().__call__(pairs[:1])


@breaks("metric", "a call does not depend on earlier calls")
class Remembers(Metric):
    calls = 0

    def __call__(self, pairs):
        values = super().__call__(sorted(pairs, key=lambda pair: pair.exam_id))
        self.calls += 1
        return {name: value + (self.calls > 4) * 0.1 for name, value in values.items()}


@breaks("metric", "by_words = False means")
class LooksAtWords(Metric):
    by_words = False


class BySums(Metric):
    """Keeps the second half of the contract too."""

    def __call__(self, pairs):
        return {name: float(value) for name, value in self.compute(self.per_exam_stats(pairs).sum(0)).items()}

    def per_exam_stats(self, pairs):
        return np.array([(super(BySums, self).__call__([pair])["my_metric"], 1) for pair in pairs], dtype=np.float64)

    def compute(self, sums):
        return {"my_metric": sums[..., 0] / sums[..., 1]}


@breaks("metric", "per_exam_stats and compute come together")
class NothingOfTheSums(Metric):
    per_exam_stats = BySums.per_exam_stats


@breaks("metric", "per_exam_stats returns a row per exam")
class SumsOfAll(BySums):
    def per_exam_stats(self, pairs):
        return super().per_exam_stats(pairs).sum(0, keepdims=True)


@breaks("metric", "a row of per_exam_stats depends only on its exam")
class SortsItsRows(BySums):
    def per_exam_stats(self, pairs):
        return np.sort(super().per_exam_stats(pairs), axis=0)


@breaks("metric", "compute of the summed rows equals the metric")
class AnotherFormula(BySums):
    def __call__(self, pairs):
        return {name: value**0.5 for name, value in super().__call__(pairs).items()}


@breaks("metric", "compute returns finite values")
class DividesByNothing(BySums):
    __call__ = Metric.__call__

    def compute(self, sums):
        return {"my_metric": sums[..., 0] ** 2 / (sums[..., 0] * sums[..., 1])}


@breaks("metric", "compute accepts [..., S]")
class MixesResamples(BySums):
    def compute(self, sums):
        values = super().compute(sums)["my_metric"]
        return {"my_metric": np.broadcast_to(values.mean(), values.shape)}


@breaks("optimizer", "every group has its own learning rate")
def one_rate(*, groups):
    return torch.optim.SGD([weight for group in groups for weight in group.parameters], lr=0.1)


@breaks("optimizer", "every group has its own learning rate")
def half_of_them(*, groups):
    return TEMPLATE["optimizer"](groups=groups[:2])


@breaks("optimizer", "biases and norms do not decay")
def decays_all(*, groups):
    rows = [{"params": group.parameters, "lr": group.lr} for group in groups]
    return torch.optim.AdamW(rows, weight_decay=0.1)


@breaks("optimizer", "an optimizer is built from `groups`")
def no_optimizer(*, groups):
    return groups


@breaks("optimizer", "a loaded optimizer continues")
def forgets(*, groups):
    optimizer = TEMPLATE["optimizer"](groups=groups)
    optimizer.register_state_dict_post_hook(lambda optimizer, state: {**state, "state": {}})
    return optimizer


@breaks("optimizer", "optimizer state is made of tensors")
def counts_in_plain_numbers(*, groups):
    optimizer = TEMPLATE["optimizer"](groups=groups)
    optimizer.register_step_post_hook(
        lambda optimizer, *_: [state.update(count=1) for state in optimizer.state.values()] and None
    )
    return optimizer


@breaks("optimizer", "a learning rate of 0 leaves weights unchanged")
def deaf_to_schedules(*, groups):
    optimizer = TEMPLATE["optimizer"](groups=groups)
    optimizer.register_step_pre_hook(
        lambda optimizer, *_: [row.update(lr=max(row["lr"], 0.01)) for row in optimizer.param_groups] and None
    )
    return optimizer


@breaks("schedule", "returns a factor for every step")
def ends_below_zero(*, steps):
    return lambda step: 1 - 2 * step / steps


@breaks("schedule", "returns a factor for every step")
def divides_by_zero(*, steps):
    return lambda step: step / (steps - 1)


@breaks("schedule", "some factor is above 0")
def starts_at_zero(*, steps):
    return lambda step: step / steps


@breaks("schedule", "a factor depends only on the step")
def counts_calls(*, steps):
    calls = itertools.count()
    return lambda step: 1 / (1 + next(calls))


# --- executors


@breaks("executor", "`processes` is the number of processes per cell")
class NoProcesses(Executor):
    processes = property(lambda self: None, lambda self, value: None)


@breaks("executor", "an idle executor has room")
class RoomForOne(Executor):
    def __init__(self, *, jobs: int | None = None) -> None:
        super().__init__(jobs=1)


class Otherwise(Executor):
    """Starts commands in another way, and kills them in close(): broken ones would leave them running."""

    handle: Any = Handle

    def command(self, job: Job) -> list[str]:
        return list(job.command)

    def log(self, job: Job) -> Path:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        return job.log

    def _start(self, job: Job) -> Any:
        with self.log(job).open("ab") as log:
            return self.handle(subprocess.Popen(self.command(job), stdout=log, stderr=log))

    def close(self) -> None:
        for handle in self.started:
            handle.process.kill()
            handle.process.wait()


@breaks("executor", "a command gets its arguments unchanged", patience_s=10)
class ThroughAShell(Otherwise):
    def command(self, job: Job) -> list[str]:
        return ["sh", "-c", " ".join('"' + word.replace('"', r"\"") + '"' for word in job.command)]


@breaks("executor", "the output of a command is appended to its log", patience_s=10)
class NoLog(Otherwise):
    def log(self, job: Job) -> Path:
        return Path(os.devnull)


@breaks("executor", "returns a handle for each job")
class FirstOnly(Executor):
    def start(self, jobs):
        return super().start(jobs[:1])


@breaks("executor", "an ended command is gone", patience_s=1)
class NeverGone(Otherwise):
    class handle(Handle):  # noqa: N801
        def state(self):
            return "running"


@breaks("executor", "ended jobs free their room", patience_s=10)
class CountsTheGone(Executor):
    def room(self):
        return self.jobs - len(self.started)


@breaks("executor", "a cancelled command ends", patience_s=1)
class DeafToCancel(Otherwise):
    class handle(Handle):  # noqa: N801
        def cancel(self):
            pass


@breaks("executor", "a cancelled command gets SIGTERM", patience_s=10)
class Kills(Otherwise):
    class handle(Handle):  # noqa: N801
        def cancel(self):
            self.process.kill()


@breaks("executor", "a running command has the state running", patience_s=10)
class WaitsForEver(Otherwise):
    class handle(Handle):  # noqa: N801
        def state(self):
            return "waiting" if super().state() == "running" else "gone"


@pytest.mark.parametrize("kind, plugin, rule, settings", MUTANTS)
def test_a_broken_rule_is_caught_and_named(kind: str, plugin: Any, rule: str, settings: Any) -> None:
    with pytest.raises(ContractError) as caught:
        check(kind, plugin, **settings)
    assert rule in str(caught.value)
    assert all(f"\n  {word}: " in str(caught.value) for word in ("found", "expected", "fix"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_passes(kind: str) -> None:
    check(kind, TEMPLATE[kind])


def test_an_encoder_with_stages_passes() -> None:
    check("encoder", HasStages)


def test_a_metric_with_sums_passes() -> None:
    check("metric", BySums)


def test_a_metric_of_chinese_reports_receives_their_language() -> None:
    languages = []

    class OfChinese(Metric):
        def __init__(self, *, language: str) -> None:
            super().__init__()
            languages.append(language)

        def __call__(self, pairs):
            assert all("乳" in pair.reference for pair in pairs)
            return super().__call__(pairs)

    check(
        "metric",
        OfChinese,
        reports=["左乳 见 低回声 结节 。", "双乳 未见 异常 。", "右乳 囊肿 ，边界 清 。"],
        language="zh",
    )
    assert set(languages) == {"zh"}


def test_a_loss_with_metrics_passes() -> None:
    check("loss", WithMetrics)


def test_every_kind_has_a_check_and_some_mutants() -> None:
    assert set(CHECKS) == set(KINDS)
    broken = [case.values[0] for case in MUTANTS]
    assert all(broken.count(kind) >= 3 for kind in KINDS)


def test_an_unknown_kind_is_refused() -> None:
    with problem("unknown-name"):
        check("encoders", Encoder)


def test_a_plugin_receives_the_run_time_values_that_it_names() -> None:
    assert build_plugin(lambda channels: channels, channels=3, width=4) == 3
    assert build_plugin(lambda **given: given, channels=3, width=4) == {"channels": 3, "width": 4}


def test_a_module_without_arguments_receives_none() -> None:
    class Plain(nn.Module): ...

    assert isinstance(build_plugin(Plain, channels=3), Plain) and isinstance(
        build_plugin(partial(Plain), channels=3), Plain
    )


def test_the_error_of_a_plugin_is_the_cause_of_the_contract_error() -> None:
    def fails(*, channels: int) -> Any:
        raise KeyError("mine")

    with pytest.raises(ContractError, match="KeyError: 'mine'") as caught:
        check_encoder(fails)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_shipped_plugin_is_found_by_its_path() -> None:
    root = ROOT
    found = plugin(root / "plugins" / "encoder" / "tiny_cnn.py", "encoder", "tiny_cnn")
    assert found.__module__ == "plugins.encoder.tiny_cnn"


def test_a_required_key_without_a_value_is_named():
    class Needy(Dataset):
        def __init__(self, *, width: int) -> None: ...

    with pytest.raises(ContractError, match="no value for width"):
        check("dataset", Needy)

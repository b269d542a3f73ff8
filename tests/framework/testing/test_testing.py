"""Each contract check catches plugins that break one promise, and names it."""

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
from framework.testing import CHECKS, BrokenPromise, check, check_encoder, plugin
from framework.testing.promise import made
from framework.testing.scaffold import TEMPLATES

GOOD: dict[str, Any] = {kind: plugin(TEMPLATES / f"{kind}.py", kind, f"my_{kind}") for kind in KINDS}
MUTANTS: list[Any] = []
Encoder, Decoder, Loss, Distiller = (GOOD[kind] for kind in ("encoder", "decoder", "loss", "distiller"))
Dataset, Tokenizer, Augment, Metric = (GOOD[kind] for kind in ("dataset", "tokenizer", "augment", "metric"))
Executor = GOOD["executor"]
Handle = sys.modules[Executor.__module__].MyHandle


def breaks(kind: str, promise: str, **settings: Any) -> Callable[[Any], Any]:
    """Marks a plugin that breaks this promise of its kind, and no earlier one; `settings` are those of the check."""

    def mark(plugin: Any) -> Any:
        MUTANTS.append(pytest.param(kind, plugin, promise, settings, id=f"{kind}: {plugin.__name__}"))
        return plugin

    return mark


# --- encoders


@breaks("encoder", "`width` tells the width")
class NoWidth(Encoder):
    def __init__(self, *, channels: int) -> None:
        super().__init__(channels=channels)
        del self.width


@breaks("encoder", "gives pooled gives pooled_BD as promised")
class WrongWidth(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD[:, :3])


@breaks("encoder", "`gives` names what an encoder can give")
class GivesSomethingElse(Encoder):
    gives = ("patches", "thoughts")


@breaks("encoder", "the gap of a missing view changes nothing")
class LeaksGap(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD + image.mean((1, 2, 3, 4))[:, None])


@breaks("encoder", "the gap of a missing view changes nothing, training")
class GapMovesStatistics(Encoder):
    def forward(self, image, mask):
        return super().forward(image - image.mean() if self.training else image, mask)


@breaks("encoder", "patches of a missing view are masked")
class MasksNothing(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(patch_mask_BN=torch.ones_like(seen.patch_mask_BN))


@breaks("encoder", "exams do not mix")
class MixesExams(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD - seen.pooled_BD.mean(0))


@breaks("encoder", "exams do not mix")
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


@breaks("encoder", "the same seed makes the same module")
class OwnSeed(Encoder):
    draws = itertools.count()

    def __init__(self, *, channels: int) -> None:
        super().__init__(channels=channels)
        draw = torch.Generator().manual_seed(next(self.draws))
        self.register_buffer("noise_D", torch.randn(self.width, generator=draw))

    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD + self.noise_D)


@breaks("encoder", "the same seed trains the same")
class OwnDropout(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD * (np.random.default_rng().random() if self.training else 1))


@breaks("encoder", "outside training the same input gives the same output")
class AlwaysDrops(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=nn.functional.dropout(seen.pooled_BD))


@breaks("encoder", "state_dict holds all")
class BufferNotRegistered(Encoder):
    def __init__(self, *, channels: int) -> None:
        super().__init__(channels=channels)
        self.offset_D = torch.randn(self.width)

    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD + self.offset_D.to(seen.pooled_BD.device))


@breaks("encoder", "everything follows .to(device)")
class ConstantOnTheCpu(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        return seen._replace(pooled_BD=seen.pooled_BD + torch.ones(self.width))


@breaks("encoder", "values are finite in bfloat16 autocast")
class Overflows(Encoder):
    def forward(self, image, mask):
        seen = super().forward(image, mask)
        half = torch.is_autocast_enabled("cpu")
        return seen._replace(pooled_BD=seen.pooled_BD / (0.0 if half else 1.0))


class HasStages(Encoder):
    """Keeps the promise of stages: the map of patches, then the norm."""

    def stages(self):
        return [[*self.embed_tokens.parameters()], [self.position_VD, *self.norm.parameters()]]


@breaks("encoder", "stages() gives every parameter once")
class LeavesItsNormOut(HasStages):
    def stages(self):
        return super().stages()[:1]


@breaks("encoder", "stages() gives every parameter once")
class GivesItsNormTwice(HasStages):
    def stages(self):
        return [*super().stages(), [*self.norm.parameters()]]


@breaks("encoder", "stages() gives every parameter once")
class StagesOfAnother(HasStages):
    def stages(self):
        return [*super().stages(), [nn.Parameter(torch.ones(1))]]


@breaks("encoder", "stages() gives every parameter once")
class FlatStages(HasStages):
    def stages(self):
        return [weight for stage in super().stages() for weight in stage]


# --- decoders


@breaks("decoder", "a decoder gives logits [B, T, W]")
class ForgetsAWord(Decoder):
    def forward(self, features, tokens):
        return super().forward(features, tokens)[..., :-1]


@breaks("decoder", "pooled_BD (not in `needs`) was touched")
class LooksAtPooled(Decoder):
    def init_cache(self, features):
        state = super().init_cache(features)
        return {**state, "memory": state["memory"] + features.pooled_BD.mean(1, keepdim=True)}


@breaks("decoder", "no word sees the words after it")
class SeesTheFuture(Decoder):
    def forward(self, features, tokens):
        return super().forward(features, tokens) + self.embed_tokens(tokens).mean((1, 2))[:, None, None]


@breaks("decoder", "exams do not mix")
class MixesReports(Decoder):
    def forward(self, features, tokens):
        logits = super().forward(features, tokens)
        return logits - logits.mean(0)


@breaks("decoder", "masked patches change nothing")
class SeesPadding(Decoder):
    def init_cache(self, features):
        return super().init_cache(features._replace(patch_mask_BN=torch.ones_like(features.patch_mask_BN)))


@breaks("decoder", "steps on the cache equal the whole at once")
class CacheForgets(Decoder):
    def step(self, tokens, state):
        logits, new = super().step(tokens, state)
        return logits, {**new, "memory": state["memory"]}


@breaks("decoder", "also after beam search has reordered the cache")
class CacheInSelf(Decoder):
    def init_cache(self, features):
        self.kept = super().init_cache(features)
        return {"image": self.kept["image"]}

    def step(self, tokens, state):
        rows = self.kept["memory"]
        memory = rows if len(rows) == len(tokens) else rows.mean(0, keepdim=True).expand(len(tokens), -1)
        logits, self.kept = super().step(tokens, {**state, "memory": memory})
        return logits, state

    def forward(self, features, tokens):
        return self._read(tokens, Decoder.start(self, features))[0]


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


@breaks("loss", "outside training the same input gives the same output")
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


@breaks("dataset", "views pickle, since worker processes load them")
class DoesNotPickle(Seen):
    wrap = OpenFile


@breaks("dataset", "loads the same twice")
class ViewsFlicker(Seen):
    wrap = Flickers


@breaks("dataset", "every view loads as a grey or coloured picture")
class FloatImages(Seen):
    wrap = Floats


@breaks("dataset", "splits() lists the exams")
class NoTest(Dataset):
    def splits(self):
        return {name: exams for name, exams in super().splits().items() if name != "test"}


@breaks("dataset", "splits share no patient")
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


@breaks("dataset", "cache_key is one text for one content")
class KeyOfTheMoment(Dataset):
    @property
    def cache_key(self):
        return str(id(self))


@breaks("tokenizer", "encode gives ids from BOS to EOS")
class NoEnd(Tokenizer):
    def encode(self, text, max_length=None):
        return super().encode(text, max_length)[:-1]


@breaks("tokenizer", "keeps the limit")
class TooLong(Tokenizer):
    def encode(self, text, max_length=None):
        return super().encode(text, max_length and max_length + 1)


@breaks("tokenizer", "encode gives ids from BOS to EOS")
class NoUnknownWords(Tokenizer):
    def encode(self, text, max_length=None):
        for character in text:
            self._ids[character]
        return super().encode(text, max_length)


@breaks("tokenizer", "what decode writes encodes to the same ids")
class LosesSpaces(Tokenizer):
    def decode(self, ids):
        return super().decode(ids).replace(" ", "")


@breaks("tokenizer", "decode ends at the first EOS")
class GoesOn(Tokenizer):
    def decode(self, ids):
        return super().decode([number for number in ids if number != EOS])


@breaks("tokenizer", "load gives back what save wrote")
class ForgetsItsOrder(Tokenizer):
    @classmethod
    def load(cls, path):
        found = super().load(path)
        found._adopt([*found.vocabulary[:4], *reversed(found.vocabulary[4:])])
        return found


@breaks("tokenizer", "segment(text) gives the words of a text, before any fit")
class SegmentsAfterFit(Tokenizer):
    def segment(self, text):
        return [word for word in text.split() if self._ids]


# --- the rest of training


@breaks("augment", "the same seeds give the same images")
class OwnDraws(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, [int(torch.randint(2**31, ())) for _ in seeds])


@breaks("augment", "an exam alone is changed as in a batch")
class OneSeedForAll(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, [seeds[0]] * len(seeds))


@breaks("augment", "images stay between 0 and 1")
class TooBright(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, seeds) + 0.5


@breaks("augment", "the images that come in are left as they are")
class InPlace(Augment):
    def __call__(self, image, seeds):
        return image.copy_(super().__call__(image, seeds))


@breaks("augment", "images keep their shape")
class Crops(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, seeds)[..., 1:]


@breaks("augment", "everything follows the device of the images")
class MaskOnTheCpu(Augment):
    def __call__(self, image, seeds):
        return super().__call__(image, seeds) * torch.ones(32, 32)


@breaks("distiller", "topic_count is known before fit")
class CountsLater(Distiller):
    def __init__(self, *, segment, seed) -> None:
        super().__init__(segment=segment, seed=seed)
        del self.topic_count


@breaks("distiller", "topic_count stays as it was told before fit")
class FindsFewer(Distiller):
    def fit(self, texts):
        self.topic_count = 2
        super().fit(texts)


@breaks("distiller", "and is known after it")
class NeverCounts(Distiller):
    def __init__(self, *, segment, seed) -> None:
        super().__init__(segment=segment, seed=seed)
        self.topic_count = None

    def fit(self, texts):
        self.topic_count = 3
        super().fit(texts)
        self.topic_count = None


@breaks("distiller", "assign learns nothing")
class RefitsInAssign(Distiller):
    """Only looks at its training reports while it describes them."""

    def assign(self, texts):
        known, self._texts = self._texts, list(texts)
        if texts is not known:
            super().fit(texts)
        self._texts = known
        return super().assign(texts)


@breaks("distiller", "weights are shares")
class WeightsDoNotAddUp(Distiller):
    def assign(self, texts):
        labels, weights = super().assign(texts)
        return labels, weights * 2


@breaks("distiller", "topics are numbered from 0")
class CountsFromOne(Distiller):
    def assign(self, texts):
        labels, weights = super().assign(texts)
        return labels + 1, weights


@breaks("distiller", "a report's topic is the one of its largest weight")
class AnotherTopic(Distiller):
    def assign(self, texts):
        labels, weights = super().assign(texts)
        return (labels + 1) % 3, weights


@breaks("distiller", "describe tells every topic")
class LeavesOneOut(Distiller):
    def describe(self):
        return super().describe()[:-1]


@breaks("distiller", "the same seed finds the same topics")
class DrawsAnew(Distiller):
    made = itertools.count()

    def fit(self, texts):
        super().fit(texts)
        self._cuts = self._cuts + next(self.made)


@breaks("metric", "a metric gives the values that `names` tells")
class OtherNames(Metric):
    names = ("another",)


@breaks("metric", "the references themselves score at least as well")
class TurnedAround(Metric):
    higher_is_better = False


@breaks("metric", "empty ones included")
class DividesByLength(Metric):
    def _ratio(self, written, expected):
        return expected / written


@breaks("metric", "the order of reports changes nothing")
class FirstCounts(Metric):
    def __call__(self, pairs):
        return super().__call__(pairs[:1])


@breaks("metric", "a metric remembers nothing")
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


@breaks("metric", "a metric that offers sums offers per_exam_stats and compute")
class NothingOfTheSums(Metric):
    per_exam_stats = BySums.per_exam_stats


@breaks("metric", "per_exam_stats gives the sums of each exam")
class SumsOfAll(BySums):
    def per_exam_stats(self, pairs):
        return super().per_exam_stats(pairs).sum(0, keepdims=True)


@breaks("metric", "a row of per_exam_stats is that of its exam")
class SortsItsRows(BySums):
    def per_exam_stats(self, pairs):
        return np.sort(super().per_exam_stats(pairs), axis=0)


@breaks("metric", "sums over all exams give what the metric gives of them")
class AnotherFormula(BySums):
    def __call__(self, pairs):
        return {name: value**0.5 for name, value in super().__call__(pairs).items()}


@breaks("metric", "compute gives a finite value of any sums")
class DividesByNothing(BySums):
    __call__ = Metric.__call__

    def compute(self, sums):
        return {"my_metric": sums[..., 0] ** 2 / (sums[..., 0] * sums[..., 1])}


@breaks("metric", "compute takes [..., S]")
class MixesResamples(BySums):
    def compute(self, sums):
        values = super().compute(sums)["my_metric"]
        return {"my_metric": np.broadcast_to(values.mean(), values.shape)}


@breaks("optimizer", "every group learns at its own rate")
def one_rate(*, groups):
    return torch.optim.SGD([weight for group in groups for weight in group.parameters], lr=0.1)


@breaks("optimizer", "every group learns at its own rate")
def half_of_them(*, groups):
    return GOOD["optimizer"](groups=groups[:2])


@breaks("optimizer", "biases and norms do not decay")
def decays_all(*, groups):
    rows = [{"params": group.parameters, "lr": group.lr} for group in groups]
    return torch.optim.AdamW(rows, weight_decay=0.1)


@breaks("optimizer", "an optimizer is made from `groups`")
def no_optimizer(*, groups):
    return groups


@breaks("optimizer", "an optimizer saved and loaded goes on")
def forgets(*, groups):
    optimizer = GOOD["optimizer"](groups=groups)
    optimizer.register_state_dict_post_hook(lambda optimizer, state: {**state, "state": {}})
    return optimizer


@breaks("optimizer", "what is kept of a parameter")
def counts_in_plain_numbers(*, groups):
    optimizer = GOOD["optimizer"](groups=groups)
    optimizer.register_step_post_hook(
        lambda optimizer, *_: [state.update(count=1) for state in optimizer.state.values()] and None
    )
    return optimizer


@breaks("optimizer", "a rate of 0 changes nothing")
def deaf_to_schedules(*, groups):
    optimizer = GOOD["optimizer"](groups=groups)
    optimizer.register_step_pre_hook(
        lambda optimizer, *_: [row.update(lr=max(row["lr"], 0.01)) for row in optimizer.param_groups] and None
    )
    return optimizer


@breaks("schedule", "gives a factor of the rate at every step")
def ends_below_zero(*, steps):
    return lambda step: 1 - 2 * step / steps


@breaks("schedule", "gives a factor of the rate at every step")
def divides_by_zero(*, steps):
    return lambda step: step / (steps - 1)


@breaks("schedule", "some step learns")
def starts_at_zero(*, steps):
    return lambda step: step / steps


@breaks("schedule", "a factor depends on the step alone")
def counts_calls(*, steps):
    calls = itertools.count()
    return lambda step: 1 / (1 + next(calls))


# --- executors


@breaks("executor", "`processes` tells how many processes a cell has")
class NoProcesses(Executor):
    processes = property(lambda self: None, lambda self, value: None)


@breaks("executor", "an executor that runs nothing has room")
class RoomForOne(Executor):
    def __init__(self, *, jobs: int | None = None) -> None:
        super().__init__(jobs=1)


class Otherwise(Executor):
    """Starts its commands in another way, and ends them when it is closed: what breaks a promise leaves them behind."""

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


@breaks("executor", "a command is run with its words as they are", patience_s=10)
class ThroughAShell(Otherwise):
    def command(self, job: Job) -> list[str]:
        return ["sh", "-c", " ".join('"' + word.replace('"', r"\"") + '"' for word in job.command)]


@breaks("executor", "what a command prints is added to its log", patience_s=10)
class NoLog(Otherwise):
    def log(self, job: Job) -> Path:
        return Path(os.devnull)


@breaks("executor", "there is a handle for each job")
class FirstOnly(Executor):
    def start(self, jobs):
        return super().start(jobs[:1])


@breaks("executor", "a command that has ended is gone", patience_s=1)
class NeverGone(Otherwise):
    class handle(Handle):  # noqa: N801
        def state(self):
            return "running"


@breaks("executor", "jobs that are gone leave their room to others", patience_s=10)
class CountsTheGone(Executor):
    def room(self):
        return self.jobs - len(self.started)


@breaks("executor", "a command that was cancelled ends", patience_s=1)
class DeafToCancel(Otherwise):
    class handle(Handle):  # noqa: N801
        def cancel(self):
            pass


@breaks("executor", "a command that is cancelled gets SIGTERM", patience_s=10)
class Kills(Otherwise):
    class handle(Handle):  # noqa: N801
        def cancel(self):
            self.process.kill()


@breaks("executor", "a command that runs is running", patience_s=10)
class WaitsForEver(Otherwise):
    class handle(Handle):  # noqa: N801
        def state(self):
            return "waiting" if super().state() == "running" else "gone"


@pytest.mark.parametrize("kind, plugin, promise, settings", MUTANTS)
def test_a_broken_promise_is_caught_and_named(kind: str, plugin: Any, promise: str, settings: Any) -> None:
    with pytest.raises(BrokenPromise) as caught:
        check(kind, plugin, **settings)
    told = str(caught.value)
    assert promise in told, told
    assert all(f"\n  {word}: " in told for word in ("found", "expected", "fix"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plugin_that_keeps_its_promises_passes(kind: str) -> None:
    check(kind, GOOD[kind])


def test_an_encoder_that_tells_its_stages_passes() -> None:
    check("encoder", HasStages)


def test_a_metric_by_sums_passes() -> None:
    check("metric", BySums)


def test_a_metric_of_chinese_reports_is_told_their_language() -> None:
    told = []

    class OfChinese(Metric):
        def __init__(self, *, language: str) -> None:
            super().__init__()
            told.append(language)

        def __call__(self, pairs):
            assert all("乳" in pair.reference for pair in pairs)
            return super().__call__(pairs)

    check(
        "metric",
        OfChinese,
        reports=["左乳 见 低回声 结节 。", "双乳 未见 异常 。", "右乳 囊肿 ，边界 清 。"],
        language="zh",
    )
    assert set(told) == {"zh"}


def test_a_loss_that_tells_more_than_its_term_passes() -> None:
    check("loss", WithMetrics)


def test_every_kind_has_a_check_and_some_mutants() -> None:
    assert set(CHECKS) == set(KINDS)
    broken = [case.values[0] for case in MUTANTS]
    assert all(broken.count(kind) >= 3 for kind in KINDS)


def test_an_unknown_kind_is_refused() -> None:
    with problem("unknown-name"):
        check("encoders", Encoder)


def test_a_plugin_gets_the_run_time_values_that_it_names() -> None:
    assert made(lambda channels: channels, channels=3, width=4) == 3
    assert made(lambda **given: given, channels=3, width=4) == {"channels": 3, "width": 4}


def test_a_module_without_arguments_of_its_own_gets_none() -> None:
    class Plain(nn.Module): ...

    assert isinstance(made(Plain, channels=3), Plain) and isinstance(made(partial(Plain), channels=3), Plain)


def test_what_a_plugin_raises_is_kept_beside_the_promise() -> None:
    def fails(*, channels: int) -> Any:
        raise KeyError("mine")

    with pytest.raises(BrokenPromise, match="KeyError: 'mine'") as caught:
        check_encoder(fails)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_shipped_plugin_is_found_by_its_path() -> None:
    root = ROOT
    found = plugin(root / "plugins" / "encoder" / "tiny_cnn.py", "encoder", "tiny_cnn")
    assert found.__module__ == "plugins.encoder.tiny_cnn"

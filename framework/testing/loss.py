"""The contract of a loss.

Shapes: B batch, N patches, M views of all exams, D width, T tokens, W words in the vocabulary, K topics.

Two class attributes relax it: `mixes_exams = True` declares that the loss of an exam depends on the other exams of the
micro-batch, so that sums over parts do not add up; `draws = True` declares that the loss draws random numbers outside
of training as well, so that only seeded results and counts are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from framework.exam import BOS, EOS, PAD, Batch, Features, Outputs, Term
from framework.registry.signature import GIVERS, MADE_OF
from framework.testing.contract import Make, build_plugin, require, runs
from framework.testing.modules import Untouchable, check_gradients, check_module, check_seeds, drawn, same, seeded

WORDS, WIDTH, TOPICS, EXAMS = 12, 6, 3, 6
# One word for each id, of different lengths, as some losses split words into subwords.
VOCABULARY = ("<pad>", "<bos>", "<eos>", "<unk>", "oval", "mass", "left", "hypoechoic", "is", "seen", "no", ".")
LENGTHS = (5, 2, 7, 4, 3, 1)  # words of each report
# For losses that compute targets from texts.
TEXTS = (
    "an oval hypoechoic mass is seen in the left breast.",
    "a round anechoic cyst is seen in the right breast.",
    "no mass is seen.",
    "",
    "an oval anechoic mass with calcification is seen in the left breast.",
    "irregular hypoechoic masses are seen in both breasts.",
)
NEEDS = tuple(GIVERS)  # what a loss may need
CUTS = ((slice(0, 1), slice(1, 4), slice(4, 6)), (slice(0, 3), slice(3, 6)))


def check_loss(make: Make) -> None:
    """Checks a loss against its contract.

    Args:
        make: The class, or a function that builds one; receives `vocabulary_size`, `vocabulary`, `feature_width`,
            `topic_count`, `word_vectors_WD`, `max_length`, `make_reward` and `training_reports`.

    Raises:
        ContractError: the first part of the contract that it breaks.
    """

    def build() -> Any:
        return build_plugin(
            make,
            vocabulary_size=WORDS,
            vocabulary=list(VOCABULARY),
            feature_width=WIDTH,
            topic_count=TOPICS,
            word_vectors_WD=drawn(WORDS, 5, seed=3),
            max_length=max(LENGTHS),
            make_reward=_make_reward,
            training_reports=list(TEXTS),
        )

    def use(loss: Any, place: Callable[[Tensor], Tensor]) -> list[Tensor]:
        batch, outputs = _batch(loss, place), _outputs(loss, place)
        return [_total(loss, batch, outputs), loss.count(batch)]

    loss = seeded(1, build).eval()
    _declared(loss)
    _targets_of(loss)
    _scalars(loss)
    check_seeds(build, use)
    with torch.no_grad():
        _cuts(loss)
        _metrics(loss)
        _padding(loss)
        _left_alone(loss)
        _half_precision(loss)
    _gradients(loss)
    check_module(build, use, draws=_flag(loss, "draws"))


def _flag(loss: Any, name: str) -> bool:
    return bool(getattr(loss, name, False))


def _adds_up(loss: Any) -> bool:
    """Whether sums over parts of a batch must add up to the sum of the batch."""
    return not _flag(loss, "mixes_exams") and not _flag(loss, "draws")


def _term(loss: Any, batch: Batch, outputs: Outputs) -> Term:
    """The term and its metrics; a loss with `draws` is seeded, so that each call draws the same."""
    if _flag(loss, "draws"):
        torch.manual_seed(7)
    term = loss(batch, outputs)
    return term if isinstance(term, Term) else Term(term, {})


def _total(loss: Any, batch: Batch, outputs: Outputs) -> Tensor:
    return _term(loss, batch, outputs).total


def _make_reward(weights: dict[str, float]) -> Callable[[list[str], list[list[int]]], np.ndarray]:
    """Rewards that depend on words and exam."""
    assert weights

    def worth(exam_ids: list[str], reports: list[list[int]]) -> np.ndarray:
        return np.array([sum(ids) / (1 + len(ids)) + len(name) for name, ids in zip(exam_ids, reports, strict=True)])

    return worth


class Pen(nn.Module):
    """A decoder without weights: the next word depends on the last word and the image."""

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        image_B1W = self._image(features)[:, None]
        return image_B1W + one_hot(tokens_BT, WORDS)

    def init_cache(self, features: Features) -> dict[str, Tensor]:
        return {"image": self._image(features)}

    def step(self, tokens_B: Tensor, cache: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return cache["image"] + one_hot(tokens_B, WORDS), cache

    @staticmethod
    def _image(features: Features) -> Tensor:
        there_BN1 = features.patch_mask_BN[..., None]
        seen_BD = (features.patches_BND * there_BN1).sum(1) / there_BN1.sum(1)
        return torch.cat([features.pooled_BD, seen_BD], dim=-1)


def _needs(loss: Any) -> tuple[str, ...]:
    return tuple(getattr(loss, "needs", ()))


def _declared(loss: Any) -> None:
    needs = _needs(loss)
    require(
        needs and set(needs) <= set(NEEDS),
        "`needs` names what a loss looks at",
        found=needs or "no `needs`",
        expected=f"some of {NEEDS}",
        fix='write it out in the class, such as needs = ("logits",)',
    )


def _batch(loss: Any, place: Callable[[Tensor], Tensor] = lambda t: t) -> Batch:
    report = torch.full((EXAMS, max(LENGTHS) + 2), PAD)
    words = torch.randint(4, WORDS, report.shape, generator=torch.Generator().manual_seed(4))
    for row, length in enumerate(LENGTHS):
        report[row, : length + 2] = torch.tensor([BOS, *words[row, :length].tolist(), EOS])
    topics = torch.arange(EXAMS) % TOPICS if "topics" in _needs(loss) else None
    weights = None if topics is None else (2 * drawn(EXAMS, TOPICS, seed=5)).softmax(-1)
    image = torch.rand(EXAMS, 2, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    mask = torch.ones(EXAMS, 2, dtype=torch.bool)
    mask[0, 1] = False
    tensors = [None if tensor is None else place(tensor) for tensor in (image, mask, report, topics, weights)]
    batch = Batch([f"exam-{row}" for row in range(EXAMS)], *tensors)  # type: ignore[arg-type]
    if getattr(loss, "targets", None) is not None:
        batch.targets = {loss.registered[1]: place(torch.from_numpy(loss.targets(TEXTS)))}
    return batch


def _targets_of(loss: Any) -> None:
    """Targets are one row for each report, computed from this report alone."""
    if getattr(loss, "targets", None) is None:
        return
    rule = "targets(reports) gives an array with one row for each report"
    with runs(rule, expected=f"{EXAMS} rows", fix="an empty report needs a row as well"):
        rows, some = loss.targets(TEXTS), loss.targets(TEXTS[1:4])
    found = getattr(rows, "shape", type(rows).__name__)
    require(
        isinstance(rows, np.ndarray) and len(rows) == EXAMS,
        rule,
        found=found,
        expected=f"a numpy array of {EXAMS} rows",
        fix="return np.stack([...]) over the reports",
    )
    fix = "fit on training_reports in __init__, and nothing in targets"
    same([torch.from_numpy(some)], [torch.from_numpy(rows[1:4])], "targets of a report depend on it alone", fix)


def _outputs(loss: Any, place: Callable[[Tensor], Tensor] = lambda t: t) -> Outputs:
    """Random outputs; a field that `needs` does not declare raises when it is touched."""
    needs = _needs(loss)

    def drawn_if(word: str, name: str, value: Tensor) -> Any:
        # A loss that generates with the decoder passes all features on to it.
        here = word in needs or ("decoder" in needs and GIVERS[word] == "encoder" and word not in MADE_OF)
        return place(value) if here else Untouchable(f"{name} (not in `needs`)")

    patch_mask = torch.ones(EXAMS, 4, dtype=torch.bool)
    patch_mask[1, 2:] = False
    features = Features(
        drawn_if("patches", "patches_BND", drawn(EXAMS, 4, WIDTH)),
        drawn_if("patches", "patch_mask_BN", patch_mask),
        drawn_if("pooled", "pooled_BD", drawn(EXAMS, WIDTH, seed=1)),
    )
    logits = drawn_if("logits", "logits_BTW", 2 * drawn(EXAMS, max(LENGTHS) + 1, WORDS, seed=2))
    decoder = Pen() if "decoder" in needs else Untouchable("decoder (not in `needs`)")
    copies = drawn_if("copies", "copies_2MD", drawn(2, 2 * EXAMS - 1, WIDTH, seed=10))  # the first exam has one view
    return Outputs(features, logits, decoder, copies)


def _scalars(loss: Any) -> None:
    rule = "a loss looks at what its `needs` declares, and at nothing else"
    fix = f"add the word to `needs` (one of {', '.join(NEEDS)}), or do not look at it"
    with runs(rule, expected=f"needs = {_needs(loss)} to be enough", fix=fix):
        batch = _batch(loss)
        count, total = loss.count(batch), _total(loss, batch, _outputs(loss))
    for name, value in (("count(batch)", count), ("forward(batch, outputs)", total)):
        require(
            isinstance(value, Tensor) and value.dim() == 0 and bool(torch.isfinite(value)),
            f"{name} gives one number",
            found=f"shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.dim() else value,
            expected="a finite tensor without dimensions",
            fix="sum over the items of the batch",
        )
    require(count >= 0, "a count is not negative", found=float(count), expected="0 or more", fix="count items")


def _cut(batch: Batch, outputs: Outputs, exams: slice, *, trim: bool) -> tuple[Batch, Outputs]:
    """Some exams of a batch, with all padding or only as much as they need."""
    end = int((batch.report_BT[exams] != PAD).sum(1).max()) if trim else batch.report_BT.shape[1]
    own = Batch(
        batch.exam_ids[exams],
        batch.image_BVCHW[exams],
        batch.view_mask_BV[exams],
        batch.report_BT[exams, :end],
        None if batch.topic_B is None else batch.topic_B[exams],
        None if batch.topic_weights_BK is None else batch.topic_weights_BK[exams],
        {name: rows[exams] for name, rows in batch.targets.items()},
    )
    features = Features(*(value[exams] if isinstance(value, Tensor) else value for value in outputs.features))
    logits: Any = outputs.logits_BTW
    copies, exam_M = outputs.copies_2MD, batch.view_mask_BV.nonzero()[:, 0]
    return own, replace(
        outputs,
        features=features,
        logits_BTW=logits[exams, : end - 1] if isinstance(logits, Tensor) else logits,
        copies_2MD=copies[:, (exam_M >= exams.start) & (exam_M < exams.stop)] if isinstance(copies, Tensor) else copies,
    )


def _cuts(loss: Any) -> None:
    batch, outputs = _batch(loss), _outputs(loss)
    total, count = _total(loss, batch, outputs).float(), loss.count(batch).float()
    with runs("a loss takes a batch of one exam", expected="a sum", fix="give 0 where there is none to compare"):
        # Also where sums of parts need not add up, so that none are asked for: a micro-batch may hold a single exam.
        _total(loss, *_cut(batch, outputs, CUTS[0][0], trim=True))
    for cut in CUTS:
        for trim in (False, True):
            parts = [_cut(batch, outputs, exams, trim=trim) for exams in cut]
            counts = torch.stack([loss.count(part[0]).float() for part in parts]).sum()
            name = f"of {len(cut)} parts" + (" without the padding that they do not need" if trim else "")
            same(
                [counts],
                [count],
                f"counts {name} add up to that of the batch",
                "count the items that forward sums over, whatever batch they are in; padding is none",
            )
            if not _adds_up(loss):
                continue
            sums = torch.stack([_total(loss, *part).float() for part in parts]).sum()
            same(
                [sums],
                [total],
                f"sums {name} add up to that of the batch",
                "give the sum over items, never a mean, from each exam alone: train_step divides by the count; a loss "
                "that compares exams with one another sets mixes_exams = True",
            )


def _metrics(loss: Any) -> None:
    """Metrics are sums of the same items as the term, with the same names for every batch."""
    batch, outputs = _batch(loss), _outputs(loss)
    whole = dict(_term(loss, batch, outputs).metrics)
    for name, value in whole.items():
        require(
            isinstance(value, Tensor) and value.dim() == 0 and bool(torch.isfinite(value)),
            "a metric is one number",
            found=f"{name}: {value}",
            expected="a finite tensor without dimensions",
            fix="sum over the items that count(batch) counts",
        )
    sums = dict.fromkeys(whole, torch.zeros(()))
    for exams in CUTS[0]:
        part = _term(loss, *_cut(batch, outputs, exams, trim=True)).metrics
        require(
            list(part) == list(whole),
            "metrics have the same names for every batch",
            found=list(part),
            expected=list(whole),
            fix="return 0 for a metric without items: processes add metrics up in this order",
        )
        sums = {name: sums[name] + part[name] for name in whole}
    if _adds_up(loss):
        same(
            list(sums.values()),
            list(whole.values()),
            "metrics of parts add up to those of the batch",
            "return the sum over items, never a mean",
        )


def _padding(loss: Any) -> None:
    batch, outputs = _batch(loss), _outputs(loss)
    total = _total(loss, batch, outputs)
    if "logits" in _needs(loss):
        other = outputs.logits_BTW.clone()
        other[batch.report_BT[:, 1:] == PAD] = 20 * drawn(WORDS, seed=8)
        same(
            [_total(loss, batch, replace(outputs, logits_BTW=other))],
            [total],
            "what is written after the end of a report changes nothing",
            "leave out where report_BT[:, 1:] == PAD (ignore_index=PAD, or multiply by the mask)",
        )
    if "patches" in _needs(loss):
        patches = outputs.features.patches_BND.masked_fill(~outputs.features.patch_mask_BN[..., None], 9.0)
        same(
            [_total(loss, batch, replace(outputs, features=outputs.features._replace(patches_BND=patches)))],
            [total],
            "masked patches have no effect",
            "leave out where patch_mask_BN is False",
        )


def _left_alone(loss: Any) -> None:
    batch, outputs = _batch(loss), _outputs(loss)
    loss.count(batch), _total(loss, batch, outputs)
    other = _batch(loss)
    fields = lambda each: [*each.features, each.logits_BTW, each.copies_2MD]  # noqa: E731
    tensors = [*vars(batch).values(), *batch.targets.values(), *fields(outputs)]
    fresh = [*vars(other).values(), *other.targets.values(), *fields(_outputs(loss))]
    pairs = [(one, two) for one, two in zip(tensors, fresh) if isinstance(one, Tensor)]
    same(
        [one for one, _ in pairs],
        [two for _, two in pairs],
        "a loss leaves batch and outputs as they are",
        "modify a copy: the next loss looks at the same tensors",
        0.0,
    )


def _half_precision(loss: Any) -> None:
    rounded = _outputs(loss, lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor)
    plain = _outputs(loss, lambda tensor: tensor.bfloat16().float() if tensor.is_floating_point() else tensor)
    batch = _batch(loss)
    rule, fix = "half precision keeps the sum", "take .float() of what an encoder or decoder gives, before the sum"
    with runs(rule, expected="a sum", fix=fix), torch.autocast("cpu", dtype=torch.bfloat16):
        total = _total(loss, batch, rounded)
    if not _flag(loss, "draws"):  # what is drawn from rounded numbers may be something else
        same([total.float()], [_total(loss, batch, plain).float()], rule, fix, 0.02)
    require(total.dtype == torch.float32, rule, found=total.dtype, expected=torch.float32, fix=fix)


def _gradients(loss: Any) -> None:
    batch, outputs = _batch(loss), _outputs(loss)
    values = {"patches": outputs.features.patches_BND, "pooled": outputs.features.pooled_BD}
    values |= {"logits": outputs.logits_BTW, "copies": outputs.copies_2MD}
    inputs = {word: value.requires_grad_() for word, value in values.items() if isinstance(value, Tensor)}
    check_gradients(loss, [_total(loss, batch, outputs)], inputs)

"""What a decoder promises. Shapes: B batch, N patches, D width, T tokens, W words in the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from framework.exam import BOS, Features
from framework.models.generation import generate, reorder_cache
from framework.registry.signature import GIVES
from framework.testing.modules import Untouchable, check_gradients, check_module, check_seeds, drawn, same, seeded
from framework.testing.promise import Make, hold, made, promised

WORDS, WIDTH, LONGEST = 11, 16, 7
VOCABULARY = ("<pad>", "<bos>", "<eos>", "<unk>", "The", "mass", "is", "oval", "left", "right", ".")
GIVEN = GIVES["encoder"]  # what a decoder may need


def check_decoder(make: Make) -> None:
    """Holds a decoder to its contract.

    Args:
        make: The class, or what makes one; gets `vocabulary_size`, `vocabulary`, `feature_width` and `max_length`.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """

    def build() -> Any:
        given = {"vocabulary_size": WORDS, "vocabulary": list(VOCABULARY), "feature_width": WIDTH}
        return made(make, **given, max_length=LONGEST)

    def use(decoder: Any, place: Callable[[Tensor], Tensor]) -> list[Tensor]:
        whole = decoder(_features(decoder, place), place(_tokens()))
        return [whole, decoder.step(place(_tokens()[:, 0]), decoder.init_cache(_features(decoder, place)))[0]]

    decoder = seeded(1, build).eval()
    needs = _needs(decoder)
    _shapes(decoder)
    check_seeds(build, use)
    with torch.no_grad():
        _causal(decoder)
        _alone(decoder)
        if "patches" in needs:
            _masked(decoder)
        _cache(decoder)
    _gradients(decoder)
    check_module(build, use)


def _needs(decoder: Any) -> tuple[str, ...]:
    needs = tuple(getattr(decoder, "needs", ("patches",)))
    hold(
        needs and set(needs) <= set(GIVEN),
        "`needs` names what an encoder gives",
        found=needs,
        expected=f"some of {GIVEN}",
        fix='write needs = ("patches",) in the class',
    )
    return needs


def _tokens() -> Tensor:
    tokens = torch.randint(3, WORDS, (3, LONGEST), generator=torch.Generator().manual_seed(5))
    tokens[:, 0] = BOS
    return tokens


def _features(decoder: Any, place: Callable[[Tensor], Tensor] = lambda t: t) -> Any:
    """Three exams, the second with gaps; what the decoder does not need may not be touched."""
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    given: dict[str, dict[str, Tensor]] = {"patches": {"patches_BND": drawn(3, 5, WIDTH), "patch_mask_BN": mask}}
    given["pooled"] = {"pooled_BD": drawn(3, WIDTH, seed=1)}
    needs = _needs(decoder)
    seen: dict[str, Any] = {
        name: place(value) if word in needs else Untouchable(f"{name} (not in `needs`)")
        for word, values in given.items()
        for name, value in values.items()
    }
    return Features(**seen)


def _rows(features: Any, rows: Tensor) -> Any:
    return Features(*(value.index_select(0, rows) if isinstance(value, Tensor) else value for value in features))


def _shapes(decoder: Any) -> None:
    promise = "a decoder gives logits [B, T, W] of as many tokens as a report may have"
    fix = "give a score of every word at every token; look only at the features that `needs` names"
    with promised(promise, expected=f"(3, {LONGEST}, {WORDS})", fix=fix):
        logits = decoder(_features(decoder), _tokens())
    expected = (3, LONGEST, WORDS)
    hold(tuple(logits.shape) == expected, promise, found=tuple(logits.shape), expected=expected, fix=fix)
    hold(torch.isfinite(logits).all(), "logits are finite", found="some that are not", expected="finite", fix=fix)


def _causal(decoder: Any) -> None:
    changed = _tokens()
    changed[:, 4:] = 3 + (changed[:, 4:] - 2) % (WORDS - 3)
    before = decoder(_features(decoder), _tokens())[:, :4]
    same(
        [decoder(_features(decoder), changed)[:, :4]],
        [before],
        "no word sees the words after it",
        "mask attention above the diagonal; read the report in one direction only",
    )


def _alone(decoder: Any) -> None:
    together = decoder(_features(decoder), _tokens())
    row = torch.tensor([1])
    alone = decoder(_rows(_features(decoder), row), _tokens()[row])
    same([alone], [together[row]], "exams do not mix: one alone is as in a batch", "keep sums and norms within an exam")


def _masked(decoder: Any) -> None:
    seen = _features(decoder)
    other = seen.patches_BND.clone()
    other[1, 3:] = 9.0
    same(
        [decoder(seen._replace(patches_BND=other), _tokens())],
        [decoder(seen, _tokens())],
        "masked patches change nothing",
        "attend where patch_mask_BN is True, and take means over those alone",
    )


def _cache(decoder: Any) -> None:
    whole = decoder(_features(decoder), _tokens())
    promise, fix = "steps on the cache equal the whole at once", "keep in the state all that earlier words left behind"
    expected = f"start(Features) -> state, then {LONGEST} times step(tokens_B, state) -> logits_BW, state"
    with promised(promise, expected=expected, fix=fix):
        same([_steps(decoder, None)], [whole], promise, fix)
    promise = "steps equal the whole also after beam search has reordered the cache"
    fix = "make the state a nest of dicts, lists and tuples of tensors with the batch first, and keep nothing in self"
    rows = torch.tensor([2, 0, 0, 1])
    with promised(promise, expected="the same logits", fix=fix):
        reordered = decoder(_rows(_features(decoder), rows), _tokens()[rows])
        same([_steps(decoder, rows)[:, 3:]], [reordered[:, 3:]], promise, fix)
    _beams(decoder)


def _steps(decoder: Any, rows: Tensor | None) -> Tensor:
    """Logits of every step; from the fourth on of these rows of the batch. [B, T, W]."""
    tokens, cache = _tokens(), decoder.init_cache(_features(decoder))
    logits: list[Tensor] = []
    for place in range(LONGEST):
        if rows is not None and place == 3:
            tokens, cache, logits = tokens[rows], reorder_cache(cache, rows), [step[rows] for step in logits]
        step, cache = decoder.step(tokens[:, place], cache)
        logits.append(step)
    return torch.stack(logits, 1)


def _beams(decoder: Any) -> None:
    """Generation of a batch is that of its exams alone, with beams that finish at different times."""
    features = _features(decoder)
    if isinstance(features.pooled_BD, Untouchable):
        features = features._replace(pooled_BD=drawn(3, WIDTH, seed=1))
    promise = "beam search writes the same report of an exam alone and in a batch"
    fix = "let the state hold the batch first in every tensor, and nothing that all rows share"
    with promised(promise, expected="reports", fix=fix):
        together = generate(decoder, features, max_length=LONGEST, num_beams=3)
        alone = [
            generate(decoder, _rows(features, torch.tensor([n])), max_length=LONGEST, num_beams=3)[0] for n in range(3)
        ]
    hold(together == alone, promise, found=together, expected=alone, fix=fix)


def _gradients(decoder: Any) -> None:
    features, needs = _features(decoder), _needs(decoder)
    for weight in decoder.parameters():
        if weight.requires_grad and weight.dim() > 1 and not weight.any():
            # A matrix that begins at zero, as one of LoRA's does, hides others until its first update.
            weight.data.copy_(0.02 * drawn(*weight.shape))
    inputs = {}
    for word, name in (("patches", "patches_BND"), ("pooled", "pooled_BD")):
        if word in needs:
            inputs[name] = getattr(features, name).requires_grad_()
    check_gradients(decoder, [decoder(features, _tokens())], inputs)

"""The contract of a decoder. Shapes: B batch, N patches, D width, T tokens, W words in the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from framework.exam import BOS, Features
from framework.models.cache import Moves, expand_beams, move_exams, reorder_beams
from framework.models.generation import generate
from framework.registry.signature import GIVES
from framework.testing.contract import Make, build_plugin, require, runs
from framework.testing.modules import Untouchable, check_gradients, check_module, check_seeds, drawn, same, seeded

WORDS, WIDTH, LONGEST = 11, 16, 7
VOCABULARY = ("<pad>", "<bos>", "<eos>", "<unk>", "The", "mass", "is", "oval", "left", "right", ".")
GIVEN = GIVES["encoder"]  # what a decoder may need


def check_decoder(make: Make) -> None:
    """Checks a decoder against its contract.

    Args:
        make: The class, or a function that builds one; receives `vocabulary_size`, `vocabulary`, `feature_width` and
            `max_length`.

    Raises:
        ContractError: the first rule that it breaks.
    """

    def build() -> Any:
        given = {"vocabulary_size": WORDS, "vocabulary": list(VOCABULARY), "feature_width": WIDTH}
        return build_plugin(make, **given, max_length=LONGEST)

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
        if hasattr(decoder, "attention"):
            _attention(decoder)
        _cache(decoder)
    _gradients(decoder)
    check_module(build, use)


def _needs(decoder: Any) -> tuple[str, ...]:
    needs = tuple(getattr(decoder, "needs", ("patches",)))
    require(
        needs and set(needs) <= set(GIVEN),
        "`needs` lists features of an encoder",
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
    """Three exams, the second with masked patches; features outside of `needs` raise when touched."""
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
    rule = "forward returns logits [B, T, W] for the longest report"
    fix = "return a logit of every word at every token; read only the features in `needs`"
    with runs(rule, expected=f"(3, {LONGEST}, {WORDS})", fix=fix):
        logits = decoder(_features(decoder), _tokens())
    expected = (3, LONGEST, WORDS)
    require(tuple(logits.shape) == expected, rule, found=tuple(logits.shape), expected=expected, fix=fix)
    require(torch.isfinite(logits).all(), "logits are finite", found="NaN or Inf", expected="finite", fix=fix)


def _causal(decoder: Any) -> None:
    changed = _tokens()
    changed[:, 4:] = 3 + (changed[:, 4:] - 2) % (WORDS - 3)
    before = decoder(_features(decoder), _tokens())[:, :4]
    same(
        [decoder(_features(decoder), changed)[:, :4]],
        [before],
        "a logit does not depend on later tokens",
        "use causal attention; run a recurrent layer in one direction",
    )


def _alone(decoder: Any) -> None:
    together = decoder(_features(decoder), _tokens())
    row = torch.tensor([1])
    alone = decoder(_rows(_features(decoder), row), _tokens()[row])
    same(
        [alone],
        [together[row]],
        "exams are independent: one alone gives the same as in a batch",
        "compute sums and norms within an exam",
    )


def _masked(decoder: Any) -> None:
    seen = _features(decoder)
    other = seen.patches_BND.clone()
    other[1, 3:] = 9.0
    same(
        [decoder(seen._replace(patches_BND=other), _tokens())],
        [decoder(seen, _tokens())],
        "masked patches have no effect",
        "attend only where patch_mask_BN is True, and average over those patches",
    )


def _attention(decoder: Any) -> None:
    """The weights of the patches, for a decoder that offers them; None if they are not known."""
    features, shape = _features(decoder), (3, LONGEST, 5)
    before = decoder(features, _tokens())
    rule = "attention returns the weight of each patch for each logit, [B, T, N]"
    with runs(rule, expected=f"attention(Features, tokens_BT) -> {shape}", fix="attend as forward does"):
        weights = decoder.attention(features, _tokens())
    if weights is None:
        return
    require(tuple(weights.shape) == shape, rule, found=tuple(weights.shape), expected=shape, fix="return [B, T, N]")
    rule, fix = "weights are at least 0 and sum to 1 over the patches of an exam", "take them after the softmax"
    require((weights >= 0).all(), rule, found=float(weights.min()), expected="no negative weight", fix=fix)
    same([weights.sum(-1)], [torch.ones(shape[:2])], rule, fix)
    same([weights[1, :, 3:]], [torch.zeros(LONGEST, 2)], "masked patches have weight 0", "mask before the softmax")
    changed = _tokens()
    changed[:, 4:] = 3 + (changed[:, 4:] - 2) % (WORDS - 3)
    rule, fix = "a weight does not depend on later tokens", "use causal attention"
    same([decoder.attention(features, changed)[:, :4]], [weights[:, :4]], rule, fix)
    rule, fix = "attention changes nothing", "restore every setting that it needs"
    same([decoder(features, _tokens())], [before], rule, fix)


def _cache(decoder: Any) -> None:
    whole = decoder(_features(decoder), _tokens())
    rule, fix = "step with a cache equals forward", "store in the cache everything that earlier tokens produced"
    expected = f"init_cache(Features) -> cache, then {LONGEST} times step(tokens_B, cache) -> logits_BW, cache"
    with runs(rule, expected=expected, fix=fix):
        same([_steps(decoder)], [whole], rule, fix)
    rule = "step equals forward after beams are reordered and exams are dropped"
    fix = "make the cache a nest of dicts, lists and tuples of tensors with the batch first; store nothing in self"
    with runs(rule, expected="the same logits", fix=fix):
        found, tokens, exams = _steps_of_beams(decoder)
        same([found], [decoder(_rows(_features(decoder), exams), tokens)[:, -1]], rule, fix)
    _beams(decoder)


def _steps(decoder: Any) -> Tensor:
    """Logits of every step [B, T, W]."""
    cache = decoder.init_cache(_features(decoder))
    logits: list[Tensor] = []
    for tokens in _tokens().unbind(1):
        step, cache = decoder.step(tokens, cache)
        logits.append(step)
    return torch.stack(logits, 1)


def _steps_of_beams(decoder: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of the last step [R, W], and tokens [R, T] and exams [R] that lead there.

    Two beams of each exam write different tokens; both continue the first or the second or each other, then the first
    exam ends.
    """
    tokens_BT = _tokens()
    tokens_BKT = torch.stack([tokens_BT, 3 + (tokens_BT - 2) % (WORDS - 3)], 1)
    tokens_BKT[..., 0] = BOS
    exams_B = torch.arange(len(tokens_BKT))
    cache = expand_beams(decoder.init_cache(_features(decoder)), 2)
    for place in range(LONGEST):
        logits_RW, cache = decoder.step(tokens_BKT[..., place].flatten(), cache)
        if place == 2:
            parents_BK = torch.tensor([[1, 1], [1, 0], [0, 0]])
            cache = reorder_beams(cache, parents_BK)
            past_BKT = tokens_BKT[..., : place + 1].clone()
            tokens_BKT[..., : place + 1] = past_BKT.gather(1, parents_BK[..., None].expand_as(past_BKT))
        if place == 3:
            moves = Moves.closing_gaps(torch.tensor([True, False, False]))
            cache = move_exams(cache, moves, 2)
            tokens_BKT, exams_B = moves.apply(tokens_BKT), moves.apply(exams_B)
    return logits_RW, tokens_BKT.flatten(0, 1), exams_B.repeat_interleave(2)


def _beams(decoder: Any) -> None:
    """Generation in a batch equals generation of each exam alone, with beams that finish at different times."""
    features = _features(decoder)
    if isinstance(features.pooled_BD, Untouchable):
        features = features._replace(pooled_BD=drawn(3, WIDTH, seed=1))
    rule = "beam search returns the same report for an exam alone and in a batch"
    fix = "put the batch first in every tensor of the cache"
    with runs(rule, expected="reports", fix=fix):
        together = generate(decoder, features, max_length=LONGEST, num_beams=3)
        alone = [
            generate(decoder, _rows(features, torch.tensor([n])), max_length=LONGEST, num_beams=3)[0] for n in range(3)
        ]
    require(together == alone, rule, found=together, expected=alone, fix=fix)


def _gradients(decoder: Any) -> None:
    features, needs = _features(decoder), _needs(decoder)
    for weight in decoder.parameters():
        if weight.requires_grad and weight.dim() > 1 and not weight.any():
            # A matrix initialized to zero, as LoRA's B, blocks the gradient of others before its first update.
            weight.data.copy_(0.02 * drawn(*weight.shape))
    inputs = {}
    for word, name in (("patches", "patches_BND"), ("pooled", "pooled_BD")):
        if word in needs:
            inputs[name] = getattr(features, name).requires_grad_()
    check_gradients(decoder, [decoder(features, _tokens())], inputs)

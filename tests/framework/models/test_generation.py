"""Generation on the cache against a plain search without one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from plain_search import search_without_cache

from framework.exam import BOS, EOS, Features
from framework.models import generation, transformer_decoder
from framework.models.ensemble import Ensemble, EnsembleFeatures
from framework.models.generation import NEVER, beam_search, forbid_repeats, generate, next_token_logprobs
from framework.models.transformer_decoder import MultiHeadAttention
from plugins.decoder.lstm_attention import LstmAttention
from plugins.decoder.transformer import Transformer

WORDS, LONGEST = 13, 9


def make_decoder(seed: int) -> Transformer:
    torch.manual_seed(seed)
    decoder = Transformer(
        vocabulary_size=WORDS, feature_width=6, max_length=LONGEST, layers=2, encoder_layers=1, width=16, heads=2,
        feedforward=24,
    ).eval()  # fmt: skip
    for weight in decoder.parameters():
        weight.data *= 2.5  # initial weights give all tokens nearly equal probabilities
    return decoder


def make_recurrent(seed: int) -> LstmAttention:
    """A decoder with a cache of another form."""
    torch.manual_seed(seed)
    decoder = LstmAttention(vocabulary_size=WORDS, feature_width=6, width=16, word_width=8, attention_width=8).eval()
    for weight in decoder.parameters():
        weight.data *= 2.5
    return decoder


def make_features(batch: int, seed: int = 0) -> Features:
    torch.manual_seed(seed)
    patches = torch.randn(batch, 5, 6)
    mask = torch.ones(batch, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return Features(patches, mask, patches.mean(1))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("no_repeat_ngram_size", [0, 2])
def test_cached_search_equals_a_search_without_cache(num_beams: int, penalty: float, no_repeat_ngram_size: int) -> None:
    lengths = set()
    for seed in range(4):
        decoder, features = make_decoder(seed), make_features(3, seed)
        options: dict[str, Any] = {
            "max_length": LONGEST,
            "num_beams": num_beams,
            "length_penalty": penalty,
            "no_repeat_ngram_size": no_repeat_ngram_size,
        }
        found = generate(decoder, features, **options)
        with torch.no_grad():
            for row, report in enumerate(found):
                one = Features(*(part[row : row + 1] for part in features))
                assert report == search_without_cache(decoder, one, **options)
                lengths.add(len(report))
    assert len(lengths) > 2, "reports of one length would not show that exams end on their own"


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_the_reports_of_a_beam_come_in_the_order_of_their_probability(penalty: float) -> None:
    decoder, features = make_decoder(1), make_features(3)
    for row, beam in enumerate(beam_search(decoder, features, max_length=LONGEST, num_beams=4, length_penalty=penalty)):
        assert len({tuple(each.token_ids) for each in beam}) == len(beam) == 4
        one = Features(*(part[row : row + 1] for part in features))
        ranks = []
        for token_ids, logprob in beam:
            ended = [*token_ids, EOS] if len(token_ids) < LONGEST else token_ids
            logits_1TW = decoder(one, torch.tensor([[BOS, *ended[:-1]]]))
            expected = next_token_logprobs(logits_1TW)[0].gather(1, torch.tensor(ended)[:, None]).sum().item()
            assert logprob == pytest.approx(expected, abs=1e-4)
            ranks.append(logprob / len(ended) ** penalty)
        assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_reports_do_not_depend_on_how_often_finished_exams_are_looked_for(
    num_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        decoder, features = make_decoder(seed), make_features(5, seed)
        options: dict[str, Any] = {"max_length": LONGEST, "num_beams": num_beams, "length_penalty": 1.0}
        every_step = generate(decoder, features, **options)
        monkeypatch.setattr(generation, "steps_between_checks", lambda _: 4)
        assert generate(decoder, features, **options) == every_step
        monkeypatch.undo()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_few_queries_equals_the_fused_kernel(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 4, 0.1).eval()
    memory, x = torch.randn(3, 6, 16), torch.randn(3, 2, 16)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 6])[:, None, None] if masked else None
    with torch.no_grad():
        found = attention(x, attention.keys_values(memory), mask)
        monkeypatch.setattr(transformer_decoder, "FEW_QUERIES", 0)
        torch.testing.assert_close(found, attention(x, attention.keys_values(memory), mask))


class Member(torch.nn.Module):
    """The part of a task that an ensemble uses."""

    def __init__(self, decoder: Transformer) -> None:
        super().__init__()
        self.decoder = decoder


def ensemble_features(*features: Features) -> EnsembleFeatures:
    return EnsembleFeatures(features, features[0].patches_BND, features[0].pooled_BD)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("members", [1, 3])
def test_an_ensemble_of_one_model_generates_the_reports_of_the_model(num_beams: int, members: int) -> None:
    for seed in range(2):
        decoder, features = make_decoder(seed), make_features(3, seed)
        options = {"max_length": LONGEST, "num_beams": num_beams, "length_penalty": 1.0}
        together = Ensemble([Member(decoder)] * members)
        found = generate(together.decoder, ensemble_features(*[features] * members), **options)
        assert found == generate(decoder, features, **options)


@pytest.mark.parametrize(("num_beams", "no_repeat_ngram_size"), [(1, 0), (3, 2)])
def test_an_ensemble_generates_by_the_mean_of_probabilities(num_beams: int, no_repeat_ngram_size: int) -> None:
    differs = False
    for seed in range(2):
        decoders = [make_decoder(seed), make_decoder(seed + 10), make_recurrent(seed + 20)]
        features = [make_features(2, seed + 5 * number) for number in range(3)]  # each has an encoder of its own
        options: dict[str, Any] = {
            "max_length": LONGEST,
            "num_beams": num_beams,
            "length_penalty": 1.0,
            "no_repeat_ngram_size": no_repeat_ngram_size,
        }
        found = generate(Ensemble([Member(each) for each in decoders]), ensemble_features(*features), **options)
        with torch.no_grad():
            for row, report in enumerate(found):
                ones = [Features(*(part[row : row + 1] for part in each)) for each in features]

                def mean(_: Features, tokens: torch.Tensor, ones: list[Features] = ones) -> torch.Tensor:
                    probabilities = []
                    for decoder, one in zip(decoders, ones):  # noqa: B023
                        probability = decoder(one, tokens).double().softmax(-1)
                        probability[..., list(NEVER)] = 0
                        probabilities.append(probability / probability.sum(-1, keepdim=True))
                    return (sum(probabilities) / 3).log().float()

                assert report == search_without_cache(mean, ones[0], **options)
        differs |= found != generate(decoders[0], features[0], **options)
    assert differs, "an ensemble that is its first member would pass"


@torch.no_grad()
def test_an_ensemble_has_the_mean_of_probabilities_and_attention() -> None:
    decoders, features = [make_decoder(0), make_recurrent(1)], [make_features(2, 3), make_features(2, 4)]
    ensemble, both = Ensemble([Member(each) for each in decoders]), ensemble_features(*features)
    tokens = torch.tensor([[BOS, 5, 6], [BOS, 7, 8]])
    probabilities = [next_token_logprobs(d(f, tokens)).exp() for d, f in zip(decoders, features)]
    torch.testing.assert_close(ensemble(both, tokens).exp(), sum(probabilities) / 2)
    weights = [d.attention(f, tokens) for d, f in zip(decoders, features)]
    torch.testing.assert_close(ensemble.attention(both, tokens), sum(weights) / 2)


@torch.no_grad()
def test_an_ensemble_of_other_patches_has_no_attention() -> None:
    ensemble, one = Ensemble([Member(make_decoder(0)), Member(make_decoder(1))]), make_features(2, 3)
    fewer = Features(one.patches_BND[:, :-1], one.patch_mask_BN[:, :-1], one.pooled_BD)
    assert ensemble.attention(ensemble_features(one, fewer), torch.tensor([[BOS], [BOS]])) is None


def test_no_ngram_repeats() -> None:
    decoder, features = make_decoder(1), make_features(4)
    plain = generate(decoder, features, max_length=LONGEST)
    assert any(len(set(pairwise(r))) < len(r) - 1 for r in plain), "the plain reports must repeat for this to test"
    for report in generate(decoder, features, max_length=LONGEST, no_repeat_ngram_size=2):
        assert len(set(pairwise(report))) == max(0, len(report) - 1)


def test_a_wider_beam_finds_more_probable_reports_on_average() -> None:
    def log_probability(decoder: Transformer, one: Features, words: list[int]) -> float:
        whole = [BOS, *words] + ([EOS] if len(words) < LONGEST else [])
        logits = decoder(one, torch.tensor([whole[:-1]]))
        logits[..., list(NEVER)] = float("-inf")
        return float(logits.log_softmax(-1)[0].gather(1, torch.tensor(whole[1:])[:, None]).sum())

    gain = 0.0
    for seed in range(6):
        decoder, one = make_decoder(seed), make_features(1, seed)
        greedy, wide = (generate(decoder, one, max_length=LONGEST, num_beams=num_beams)[0] for num_beams in (1, 8))
        gain += log_probability(decoder, one, wide) - log_probability(decoder, one, greedy)
    assert gain > 0


def test_a_generated_unigram_is_forbidden() -> None:
    scores = forbid_repeats(torch.zeros(1, 5), torch.tensor([[2, 4]]), 1)
    assert scores.isinf().tolist() == [[False, False, True, False, True]]

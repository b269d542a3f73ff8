"""Generation on the cache against a plain search that runs the whole decoder anew for every word."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from framework.exam import BOS, EOS, Features
from framework.models.ensemble import EachFeatures, Ensemble
from framework.models.generation import NEVER, forbid_repeats, generate, select
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
        weight.data *= 2.5  # at its first weights a decoder finds all words alike, which would test nothing
    return decoder


def make_recurrent(seed: int) -> LstmAttention:
    """A decoder with a state of another form."""
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


def search_without_cache(
    decoder: Callable[[Features, torch.Tensor], torch.Tensor],
    features: Features,
    num_beams: int,
    penalty: float,
    no_repeat_ngram_size: int,
) -> list[int]:
    """The rules in generate's docstring, for one exam, with lists and no state."""
    hypotheses: list[tuple[float, list[int]]] = [(0.0, [])]
    rank = lambda item: item[0] / max(1, len(item[1])) ** penalty  # noqa: E731
    for _ in range(LONGEST):
        grown = []
        for total, words in hypotheses:
            if words and words[-1] == EOS:
                grown.append((total, words))
                continue
            logits = decoder(features, torch.tensor([[BOS, *words]]))[0, -1]
            logits[list(NEVER)] = float("-inf")
            if no_repeat_ngram_size:
                known = [
                    tuple(words[i : i + no_repeat_ngram_size]) for i in range(len(words) - no_repeat_ngram_size + 1)
                ]
                for word in range(WORDS):
                    if tuple([*words, word][-no_repeat_ngram_size:]) in known:
                        logits[word] = float("-inf")
            steps = logits.log_softmax(-1)
            grown += [(total + float(steps[w]), [*words, w]) for w in range(WORDS) if w not in NEVER]
        hypotheses = sorted(grown, key=rank, reverse=True)[:num_beams]
        if all(words[-1] == EOS for _, words in hypotheses):
            break
    best = max(hypotheses, key=rank)[1]
    return [word for word in best if word != EOS]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("no_repeat_ngram_size", [0, 2])
def test_cached_search_equals_a_search_without_cache(num_beams: int, penalty: float, no_repeat_ngram_size: int) -> None:
    lengths = set()
    for seed in range(4):
        decoder, features = make_decoder(seed), make_features(3, seed)
        options = {
            "max_length": LONGEST,
            "num_beams": num_beams,
            "length_penalty": penalty,
            "no_repeat_ngram_size": no_repeat_ngram_size,
        }
        found = generate(decoder, features, **options)
        with torch.no_grad():
            for row, report in enumerate(found):
                one = Features(*(part[row : row + 1] for part in features))
                assert report == search_without_cache(decoder, one, num_beams, penalty, no_repeat_ngram_size)
                lengths.add(len(report))
    assert len(lengths) > 2, "reports of one length would not show that exams end on their own"


class Member(torch.nn.Module):
    """As much of a task as an ensemble looks at."""

    def __init__(self, decoder: Transformer) -> None:
        super().__init__()
        self.decoder = decoder


def of_each(*features: Features) -> EachFeatures:
    return EachFeatures(features, features[0].patches_BND, features[0].pooled_BD)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("members", [1, 3])
def test_a_model_together_with_itself_writes_what_it_writes_alone(num_beams: int, members: int) -> None:
    for seed in range(2):
        decoder, features = make_decoder(seed), make_features(3, seed)
        options = {"max_length": LONGEST, "num_beams": num_beams, "length_penalty": 1.0}
        together = Ensemble([Member(decoder)] * members)
        found = generate(together.decoder, of_each(*[features] * members), **options)
        assert found == generate(decoder, features, **options)


@pytest.mark.parametrize(("num_beams", "no_repeat_ngram_size"), [(1, 0), (3, 2)])
def test_models_write_together_by_the_mean_of_their_probabilities(num_beams: int, no_repeat_ngram_size: int) -> None:
    differs = False
    for seed in range(2):
        decoders = [make_decoder(seed), make_decoder(seed + 10), make_recurrent(seed + 20)]
        features = [make_features(2, seed + 5 * number) for number in range(3)]  # each has an encoder of its own
        options = {
            "max_length": LONGEST,
            "num_beams": num_beams,
            "length_penalty": 1.0,
            "no_repeat_ngram_size": no_repeat_ngram_size,
        }
        found = generate(Ensemble([Member(each) for each in decoders]), of_each(*features), **options)
        with torch.no_grad():
            for row, report in enumerate(found):
                ones = [Features(*(part[row : row + 1] for part in each)) for each in features]

                def mean(_: Features, tokens: torch.Tensor, ones: list[Features] = ones) -> torch.Tensor:
                    shares = []
                    for decoder, one in zip(decoders, ones):  # noqa: B023
                        share = decoder(one, tokens).double().softmax(-1)
                        share[..., list(NEVER)] = 0
                        shares.append(share / share.sum(-1, keepdim=True))
                    return (sum(shares) / 3).log().float()

                assert report == search_without_cache(mean, ones[0], num_beams, 1.0, no_repeat_ngram_size)
        differs |= found != generate(decoders[0], features[0], **options)
    assert differs, "an ensemble that is its first member would pass"


def test_no_ngram_comes_twice() -> None:
    decoder, features = make_decoder(1), make_features(4)
    plain = generate(decoder, features, max_length=LONGEST)
    assert any(len(set(pairwise(r))) < len(r) - 1 for r in plain), "the plain reports must repeat for this to test"
    for report in generate(decoder, features, max_length=LONGEST, no_repeat_ngram_size=2):
        assert len(set(pairwise(report))) == max(0, len(report) - 1)


def test_a_wider_beam_finds_likelier_reports_on_the_whole() -> None:
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


def test_a_unigram_is_forbidden_once_written() -> None:
    scores = forbid_repeats(torch.zeros(1, 5), torch.tensor([[2, 4]]), 1)
    assert scores.isinf().tolist() == [[False, False, True, False, True]]


def test_select_reorders_every_tensor_of_a_nest() -> None:
    state = {"a": [(torch.arange(3), None)], "b": torch.arange(6).view(3, 2)}
    picked = select(state, torch.tensor([2, 0]))
    assert picked["a"][0][0].tolist() == [2, 0] and picked["b"].tolist() == [[4, 5], [0, 1]]

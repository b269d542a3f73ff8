from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from harness import problem
from torch import nn

from framework.exam import BOS, EOS, PAD, UNK, Batch, Features, Outputs
from framework.text.lsa import ReportSpace
from plugins.loss.global_semantic import GlobalSemantic
from plugins.loss.next_token import NextToken
from plugins.loss.topic import Topic

WORDS = ["left", "right", "cyst", "mass", "oval", "seen", "no", "margin"]
VOCABULARY = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]
REPORTS = ["left oval mass", "right cyst seen", "no mass seen", "left cyst oval margin", "right mass margin", "no cyst"]
SPACE = ReportSpace(5, seed=0).fit([report.split() for report in REPORTS])
VECTORS = torch.from_numpy(SPACE.word_vectors(VOCABULARY))


def batch(*reports: str, topics: list[int] | None = None) -> Batch:
    rows = [[BOS, *(VOCABULARY.index(w) if w in VOCABULARY else UNK for w in r.split()), EOS] for r in reports]
    longest = max(map(len, rows))
    return Batch(
        exam_ids=[f"exam{number}" for number in range(len(rows))],
        image_BVCHW=torch.rand(len(rows), 1, 1, 4, 4),
        view_mask_BV=torch.ones(len(rows), 1, dtype=torch.bool),
        report_BT=torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]),
        topic_B=None if topics is None else torch.tensor(topics),
    )


def outputs(logits_BTW: torch.Tensor, width: int = 6) -> Outputs:
    exams = len(logits_BTW)
    features = Features(torch.rand(exams, 2, width), torch.ones(exams, 2, dtype=torch.bool), torch.rand(exams, width))
    return Outputs(features, logits_BTW)


def random_logits(given: Batch) -> torch.Tensor:
    exams, tokens = given.report_BT.shape
    return torch.randn(exams, tokens - 1, len(VOCABULARY), generator=torch.Generator().manual_seed(0))


def certain(given: Batch) -> torch.Tensor:
    """Logits that give the reference probability 1."""
    return 100.0 * F.one_hot(given.report_BT[:, 1:], len(VOCABULARY)).float()


def test_next_token_divided_by_its_count_is_the_mean_cross_entropy():
    given = batch("left oval mass", "cyst")
    logits = random_logits(given)
    loss = NextToken()
    assert loss.count(given) == 4 + 2  # EOS is written too
    mean = F.cross_entropy(logits.transpose(1, 2), given.report_BT[:, 1:], ignore_index=PAD)
    assert torch.allclose(loss(given, outputs(logits)) / loss.count(given), mean)


def test_next_token_is_near_zero_if_the_decoder_is_certain_of_the_reference():
    given = batch("left oval mass", "cyst")
    assert NextToken()(given, outputs(certain(given))) < 1e-4


def test_label_smoothing_mixes_in_the_uniform_distribution():
    given = batch("left oval mass", "cyst")
    logp = random_logits(given).log_softmax(-1)
    target, mask = given.report_BT[:, 1:], given.report_BT[:, 1:] != PAD
    hard = -logp.gather(2, target[..., None]).squeeze(2)
    expected = ((0.9 * hard - 0.1 * logp.mean(-1)) * mask).sum()
    assert torch.allclose(NextToken(label_smoothing=0.1)(given, outputs(random_logits(given))), expected)


def test_topic_trains_its_head_and_the_features():
    given = batch(*REPORTS, topics=[0, 1, 2, 0, 1, 2])
    pooled = torch.rand(6, 6, requires_grad=True)
    loss = Topic(topic_count=3, feature_width=6)
    seen = Outputs(Features(torch.rand(6, 2, 6), torch.ones(6, 2, dtype=torch.bool), pooled), random_logits(given))
    total = loss(given, seen)
    assert torch.allclose(total, F.cross_entropy(loss.head(pooled), given.topic_B, reduction="sum"))
    total.backward()
    assert pooled.grad.any() and all(p.grad.any() for p in loss.parameters()) and loss.count(given) == 6


def seen_by(loss: Topic, topics: list[int] | None, weights: torch.Tensor | None) -> tuple[Batch, torch.Tensor]:
    """A batch with topics and their weights, and the probabilities that the head gives."""
    given = replace(batch(*REPORTS, topics=topics), topic_weights_BK=weights)
    seen = outputs(random_logits(given))
    return loss(given, seen), loss.head(seen.features.pooled_BD).softmax(-1)


def test_soft_topics_give_the_cross_entropy_against_the_distribution():
    weights = torch.rand(6, 3).softmax(-1)
    loss = Topic(topic_count=3, feature_width=6, target="soft")
    total, p_BK = seen_by(loss, [0, 1, 2, 0, 1, 2], weights)
    assert torch.allclose(total, -(weights * p_BK.log()).sum())
    certain_of = F.one_hot(torch.tensor([0, 1, 2, 0, 1, 2])).float()
    torch.manual_seed(3)
    soft, _ = seen_by(loss, [0, 1, 2, 0, 1, 2], certain_of)
    torch.manual_seed(3)
    loss.target = "hard"
    hard, _ = seen_by(loss, [0, 1, 2, 0, 1, 2], None)
    assert torch.allclose(soft, hard), "a one-hot distribution equals a hard target"


def test_focal_multiplies_each_topic_by_a_power_of_1_minus_p():
    topics, weights = [0, 1, 2, 0, 1, 2], torch.rand(6, 3).softmax(-1)
    loss = Topic(topic_count=3, feature_width=6, focal=2.0)
    total, p_BK = seen_by(loss, topics, weights)
    p_B = p_BK[torch.arange(6), topics]
    assert torch.allclose(total, -((1 - p_B) ** 2 * p_B.log()).sum())
    loss.target = "soft"
    total, p_BK = seen_by(loss, topics, weights)
    assert torch.allclose(total, -(weights * (1 - p_BK) ** 2 * p_BK.log()).sum())


def test_focal_has_a_finite_gradient_at_probability_1():
    loss = Topic(topic_count=2, feature_width=1, focal=0.5)
    loss.head[1].weight.data.fill_(0)
    loss.head[1].bias.data.copy_(torch.tensor([200.0, -200.0]))
    given = batch(*REPORTS, topics=[0] * 6)
    total = loss(given, outputs(random_logits(given), width=1))
    total.backward()
    assert total == 0 and all(torch.isfinite(weight.grad).all() for weight in loss.parameters())


def test_topic_without_a_distiller_is_refused():
    given = batch("left cyst")
    loss = Topic(topic_count=3, feature_width=6)
    for ask in (lambda: loss.count(given), lambda: loss(given, outputs(random_logits(given)))):
        with problem("missing-input", place="losses.topic"):
            ask()


def test_topic_has_dropout_only_in_training():
    given = batch(*REPORTS, topics=[0, 1, 2, 0, 1, 2])
    seen = outputs(random_logits(given))
    loss = Topic(topic_count=3, feature_width=6, dropout=0.5)
    assert not torch.equal(loss(given, seen), loss(given, seen))
    loss.eval()
    assert torch.equal(loss(given, seen), loss(given, seen))


def test_global_semantic_is_zero_for_the_words_of_the_reference_in_any_order():
    loss = GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=VECTORS)
    given, turned, other = batch("left oval mass"), batch("mass left oval"), batch("no cyst seen")
    assert loss(given, outputs(certain(given))).abs() < 1e-5
    assert loss(given, outputs(certain(turned))).abs() < 1e-5
    assert loss(given, outputs(certain(other))) > 0.3


def test_global_semantic_of_certain_text_is_the_cosine_in_the_report_space():
    written, reference = batch("no cyst seen margin", "right oval cyst mass"), batch("left oval mass seen", REPORTS[0])
    points = [SPACE.embed([report.split()])[0] for report in ("no cyst seen margin", "left oval mass seen")]
    only = Batch(["a"], reference.image_BVCHW[:1], reference.view_mask_BV[:1], reference.report_BT[:1])
    total = GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=VECTORS)(only, outputs(certain(written)[:1]))
    assert total.item() == pytest.approx(1 - float(points[0] @ points[1]), abs=1e-5)


def test_a_reference_without_a_word_of_the_space_is_not_counted():
    loss = GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=VECTORS)
    given = batch("left oval mass", "unheard words only", "")
    logits = random_logits(given).requires_grad_()
    assert loss.count(given) == 1
    alone = batch("left oval mass")
    total = loss(given, outputs(logits))
    assert torch.allclose(total, loss(alone, outputs(logits[:1])))
    nothing = batch("unheard", "words")
    zero = loss(nothing, outputs(logits[:2, :2]))
    assert zero == 0 and loss.count(nothing) == 0
    (total + zero).backward()
    assert torch.isfinite(logits.grad).all() and not logits.grad[1:].any()


def test_special_tokens_have_zero_vectors():
    vectors = torch.ones(len(VOCABULARY), 3)
    loss = GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=vectors)
    assert not loss.word_vectors_WD[:4].any() and loss.word_vectors_WD[4:].all()
    assert vectors.all(), "the caller's tensor is unchanged"


def test_word_vectors_are_frozen_and_saved():
    loss = GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=VECTORS)
    assert not list(loss.parameters()) and "word_vectors_WD" in loss.state_dict()


def test_a_vocabulary_without_words_of_the_space_is_refused():
    with problem("does-not-fit", place="losses.global_semantic"):
        GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=torch.zeros(12, 3))


class TinyModel(nn.Module):
    """An encoder of one layer, and a decoder that reads it and the token before."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(16, 8)
        self.embedding = nn.Embedding(len(VOCABULARY), 8)
        self.decoder = nn.Linear(8, len(VOCABULARY))

    def forward(self, given: Batch) -> Outputs:
        pooled = torch.tanh(self.encoder(given.image_BVCHW.flatten(1)))
        logits = self.decoder(torch.tanh(pooled[:, None] + self.embedding(given.report_BT[:, :-1])))
        return Outputs(Features(pooled[:, None], torch.ones(len(pooled), 1, dtype=torch.bool), pooled), logits)


def test_global_semantic_alone_trains_decoder_and_encoder():
    torch.manual_seed(0)
    given, model, loss = batch(*REPORTS), TinyModel(), GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=VECTORS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    similarity = []
    for step in range(80):
        mean = loss(given, model(given)) / loss.count(given)
        similarity.append(1 - mean.item())
        optimizer.zero_grad()
        mean.backward()
        if step == 0:
            assert model.encoder.weight.grad.norm() > 1e-4 and model.decoder.weight.grad.norm() > 1e-4
        optimizer.step()
    assert similarity[0] < 0.8 and similarity[-1] > similarity[0] + 0.2 and similarity[-1] > 0.9

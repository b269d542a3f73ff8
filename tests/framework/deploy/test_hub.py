"""Models on the hub: what is uploaded and downloaded, and what is refused. The hub is a stub on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import launch, problem
from hub_server import TOKEN, Hub
from huggingface_hub import constants

import sonoscribe
from framework.checkpoint.export import CARD, MANIFEST, WEIGHTS, write_manifest
from framework.deploy.hub import pull_model, push_model
from framework.recipe import load_recipe, portable

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)
REPO = "clinic/breast"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that this process asks, with a token and an empty cache."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stub has Git LFS
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with a manifest of their sizes and hashes."""
    entries = {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in files.items()}
    return {**files, MANIFEST: json.dumps(entries).encode()}


def test_a_pushed_model_is_pulled_as_it_was_and_loads_by_its_name(smoke_run: Path, hub: Hub, tmp_path: Path) -> None:
    assert push_model(smoke_run, REPO).startswith(f"{hub.url}/{REPO}/commit/")
    _, there = hub.files(REPO)
    assert REPO in hub.private
    model = contents(smoke_run / "model")
    assert {name: data for name, data in there.items() if name not in (CARD, ".gitattributes")} == {
        name: data for name, data in model.items() if name != CARD
    }
    assert f'sonoscribe.load("{REPO}")' in there[CARD].decode()
    pull_model(REPO, None, tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == {name: data for name, data in there.items() if name != ".gitattributes"}
    expected = sonoscribe.load(smoke_run).report([IMAGE])
    assert sonoscribe.load(tmp_path / "pulled").report([IMAGE]) == expected
    assert sonoscribe.load(REPO).report([IMAGE]) == expected
    before = len(hub.asked)
    assert sonoscribe.load(REPO).report([IMAGE]) == expected
    assert hub.asked[before:] == [("GET", f"/api/models/{REPO}")]  # nothing is downloaded twice


def test_a_push_removes_files_of_the_model_before_and_a_revision_is_pulled(
    smoke_run: Path, hub: Hub, tmp_path: Path
) -> None:
    first = hub.commit(REPO, with_manifest({"model.safetensors": b"", "recipe.yaml": b"", "tokenizer.json": b""}))
    hub.commits[REPO][0][1]["plugins/old.py"] = b""
    push_model(smoke_run, REPO)
    assert "plugins/old.py" not in hub.files(REPO)[1]
    pull_model(REPO, first, tmp_path / "old")
    assert sorted(contents(tmp_path / "old")) == [MANIFEST, WEIGHTS, "recipe.yaml", "tokenizer.json"]
    with problem("no-such-file", REPO):
        pull_model(REPO, "v2", tmp_path / "other")


def test_a_file_that_differs_from_its_hash_is_refused_and_leaves_nothing(
    smoke_run: Path, hub: Hub, tmp_path: Path
) -> None:
    changed = contents(smoke_run / "model")
    changed["tokenizer.json"] += b" "
    hub.commit(REPO, changed)
    with problem("damaged-file", f"{REPO}/tokenizer.json"):
        pull_model(REPO, None, tmp_path / "out" / "pulled")
    with problem("damaged-file", f"{REPO}/tokenizer.json"):
        sonoscribe.load(REPO)
    assert not any((tmp_path / "out").iterdir())
    assert [path for path in (tmp_path / "hf" / "sonoscribe").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["../escaped.py", "/tmp/escaped.py", "plugins/../../escaped.py"])
def test_a_manifest_that_names_files_elsewhere_is_refused_before_they_are_asked_for(
    smoke_run: Path, hub: Hub, tmp_path: Path, name: str
) -> None:
    files = contents(smoke_run / "model")
    entries = json.loads(files[MANIFEST])
    files[MANIFEST] = json.dumps({**entries, name: [0, "0" * 64]}).encode()
    hub.commit(REPO, {**files, name: b"evil"})
    with problem("damaged-file", f"{REPO}/{MANIFEST}"):
        pull_model(REPO, None, tmp_path / "out" / "pulled")
    assert not any("escaped" in path for _, path in hub.asked)
    assert not any((tmp_path / "out").iterdir())


def test_files_that_no_manifest_names_are_not_downloaded(smoke_run: Path, hub: Hub, tmp_path: Path) -> None:
    hub.commit(REPO, {**contents(smoke_run / "model"), "plugins/evil.py": b"1", "weights.pkl": b"2"})
    pull_model(REPO, None, tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == contents(smoke_run / "model")


def test_code_that_comes_from_the_hub_runs_only_if_it_is_trusted(
    smoke_run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    marker, file = tmp_path / "ran", tmp_path / "mine.py"
    file.write_text(
        "from pathlib import Path\nfrom framework.registry import register\nfrom plugins.tokenizer.words import Words\n"
        f"Path({str(marker)!r}).touch()\n\n\n@register('tokenizer', 'mine')\nclass Mine(Words):\n    '''Words.'''\n"
    )
    shutil.copytree(smoke_run / "model", tmp_path / "model")
    theirs = load_recipe("smoke", [f"plugins={file}", "data.tokenizer={_delete_: true, name: mine}"])
    portable(theirs).write(tmp_path / "model")
    write_manifest(tmp_path / "model")
    push_model(tmp_path, REPO)
    with problem("untrusted-code", "plugins/mine.py"):
        sonoscribe.load(REPO)
    assert not marker.exists()
    assert sonoscribe.load(REPO, trust=True).report([IMAGE]) == sonoscribe.load(smoke_run).report([IMAGE])
    assert marker.exists()


def test_a_missing_repository_no_token_and_no_hub_are_told_apart(
    smoke_run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with problem("no-such-file", "clinic/missing"):
        pull_model("clinic/missing", None, out)
    with problem("no-such-file", "clinic/missing"):
        sonoscribe.load("clinic/missing")
    with problem("wrong-format", "a b"):
        pull_model("a b", None, out)
    hub.commit(REPO, {"README.md": b"no model"})
    with problem("no-such-file", REPO):
        pull_model(REPO, None, out)
    push_model(smoke_run, "clinic/private")
    monkeypatch.delenv("HF_TOKEN")
    with problem("no-such-file", "clinic/private"):  # the hub does not say that there is one
        pull_model("clinic/private", None, out)
    with problem("hub-refused", REPO):
        push_model(smoke_run, REPO)
    hub.__exit__()
    with problem("hub-refused", REPO):
        pull_model(REPO, None, out)
    assert not out.exists()


def test_a_folder_is_not_replaced_and_a_damaged_model_is_not_pushed(smoke_run: Path, hub: Hub, tmp_path: Path) -> None:
    with problem("file-exists", str(tmp_path)):
        pull_model(REPO, None, tmp_path)
    shutil.copytree(smoke_run / "model", tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text("")
    with problem("damaged-file", "recipe.yaml"):
        push_model(tmp_path, REPO)
    with problem("no-model"):
        push_model(tmp_path / "nothing", REPO)
    assert hub.asked == []


def test_the_verbs_take_the_hub_from_the_environment(smoke_run: Path, tmp_path: Path) -> None:
    with Hub() as hub:
        here = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        assert hub.url in launch("push", str(smoke_run), REPO, "--public", cwd=tmp_path, environment=here).stdout
        assert REPO not in hub.private
        assert launch("pull", REPO, cwd=tmp_path, environment=here).stdout == "breast\n"
        missing = launch("pull", "clinic/none", cwd=tmp_path, environment=here, check=False)
        assert missing.returncode == 2 and "[no-such-file]" in missing.stderr and "Traceback" not in missing.stderr
    assert (tmp_path / "breast" / WEIGHTS).read_bytes() == (smoke_run / "model" / WEIGHTS).read_bytes()

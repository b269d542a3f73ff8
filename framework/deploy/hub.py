"""Models on a hub of Hugging Face: a repository has the files of a model's folder, and nothing else is read from it."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from framework.checkpoint.export import CARD, MANIFEST, model_folder, read_manifest, verify_model
from framework.run.model_card import PLACEHOLDER
from framework.runtime.errors import UserError, first_line

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
KEPT = (".gitattributes",)  # files of a repository that are not the model's and stay
LOG_IN = "Set HF_TOKEN to a token that may do this, or run: hf auth login"
REACH = "Check the network and the variable HF_ENDPOINT, and try again."


def push_model(folder: Path, repo: str, public: bool = False) -> str:
    """Uploads the model of a run, or an exported model, as one commit; files that are no longer its own are removed.

    Args:
        folder: of a run, or of an exported model.
        repo: OWNER/NAME; it is created if there is none, as a private one unless `public`.

    Returns:
        the address of the commit.

    Raises:
        UserError: the folder has no model or a damaged one, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    model = model_folder(folder)
    verify_model(model)
    names = [*read_manifest(model), MANIFEST]
    additions = [CommitOperationAdd(name, str(model / name)) for name in names]
    if (model / CARD).is_file():
        text = (model / CARD).read_text(encoding="utf-8").replace(PLACEHOLDER, repo)
        additions.append(CommitOperationAdd(CARD, text.encode()))
    with _asking(repo):
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        kept = {*KEPT, *(each.path_in_repo for each in additions)}
        there = [each.rfilename for each in api.model_info(repo).siblings or ()]
        removals = [CommitOperationDelete(name) for name in there if name not in kept]
        return str(api.create_commit(repo, [*additions, *removals], commit_message="Model of Sonoscribe").commit_url)


def pull_model(repo: str, revision: str | None, folder: Path) -> None:
    """Downloads a model to a new folder, and checks it against the hashes of its manifest.

    Args:
        revision: a branch, tag or commit; None for the newest.

    Raises:
        UserError: the hub does not have the model or refuses; `damaged-file` if a file differs from the manifest.
    """
    if folder.exists():
        raise UserError("file-exists", "it exists already", place=folder, hint="Name another folder by --out.")
    _download(repo, _commit(repo, revision), folder)


def find_model(name: str | Path) -> Path:
    """The folder that has this name; or, of a name OWNER/NAME on the hub, a folder with its newest model.

    Raises:
        UserError: as `pull_model`.
    """
    local = Path(name).expanduser()
    if isinstance(name, Path) or local.exists() or not NAME.fullmatch(name):
        return local
    from huggingface_hub import constants

    try:
        commit = _commit(name, None)
    except UserError as error:
        found = "no such folder; the hub: {}"
        raise UserError.of(replace(each, found=found.format(each.found)) for each in error.problems) from error
    folder = Path(constants.HF_HOME) / "sonoscribe" / name.replace("/", "--") / commit
    if not folder.exists():
        _download(name, commit, folder)
    return folder


def _commit(repo: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    with _asking(repo):
        commit = HfApi().model_info(repo, revision=revision).sha
    if not re.fullmatch(r"[0-9a-f]{40}", str(commit)):
        raise UserError("hub-refused", f"found the commit {commit!r}", place=repo, expected="40 hexadecimal digits")
    return str(commit)


def _download(repo: str, commit: str, folder: Path) -> None:
    """Downloads the files that the manifest names, checks them, and then gives the folder its name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        with _asking(repo):
            get = partial(HfApi().hf_hub_download, repo, revision=commit, local_dir=part)
            get(MANIFEST)
            with _named(repo, part):
                names = list(read_manifest(part))
            for name in names:
                get(name)
            with contextlib.suppress(EntryNotFoundError):
                get(CARD)
        shutil.rmtree(part / ".cache", ignore_errors=True)  # of the download
        with _named(repo, part):
            verify_model(part)
        try:
            part.replace(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _asking(repo: str) -> Iterator[None]:
    """Inside, the hub is asked. Its errors become `no-such-file`, `wrong-format` or `hub-refused`."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def refused(error: Exception, hint: str) -> UserError:
        return UserError("hub-refused", first_line(error), place=repo, hint=hint)

    try:
        yield
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError("wrong-format", first_line(error), place=repo, expected="OWNER/NAME") from error
    except (GatedRepoError, LocalTokenNotFoundError) as error:
        raise refused(error, LOG_IN) from error
    except RepositoryNotFoundError as error:
        hint = f"Check the name. {LOG_IN}"
        raise UserError("no-such-file", "no such repository, or a private one", place=repo, hint=hint) from error
    except RevisionNotFoundError as error:
        raise UserError("no-such-file", "the repository has no such revision", place=repo) from error
    except LocalEntryNotFoundError as error:  # what the download raises where the hub cannot be reached
        raise refused(error, REACH) from error
    except EntryNotFoundError as error:
        raise UserError("no-such-file", f"a file of the model is missing ({first_line(error)})", place=repo) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise refused(error, LOG_IN if status in (401, 403) else REACH) from error
    except Exception as error:  # of the network or of the client, which raises its own
        raise refused(error, REACH) from error


@contextlib.contextmanager
def _named(repo: str, part: Path) -> Iterator[None]:
    """Inside, errors that name files of the download name those of the repository."""
    try:
        yield
    except UserError as error:
        hint = "Download it again; if it stays so, the repository is damaged."
        raise UserError.of(
            replace(
                each, place=each.place.replace(str(part), repo), found=each.found.replace(str(part), repo), hint=hint
            )
            for each in error.problems
        ) from error

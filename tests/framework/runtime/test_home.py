"""Containers run under user ids without a name and without a home folder."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

from framework.runtime.home import CACHES, provide_home

NAMES = ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME", *CACHES)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment without names, and a user id that the system does not know."""

    def unknown(*_):
        raise KeyError("uid not found")

    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that the test restores it
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return monkeypatch


def test_a_user_id_without_name_and_home_gets_both(bare, tmp_path):
    provide_home()
    assert os.environ["USER"] == f"uid{os.getuid()}" and Path.home().is_relative_to(tmp_path)
    assert all(Path(os.environ[name]).is_relative_to(tmp_path) for name in CACHES)


def test_a_home_that_cannot_be_written_stays_and_caches_go_elsewhere(bare, tmp_path):
    bare.setenv("HOME", "/no/such")
    bare.setenv("MPLCONFIGDIR", "mine")
    provide_home()
    assert os.environ["HOME"] == "/no/such" and os.environ["MPLCONFIGDIR"] == "mine"
    assert Path(os.environ["NUMBA_CACHE_DIR"]).is_relative_to(tmp_path)


def test_an_ordinary_user_keeps_the_environment(bare, tmp_path):
    bare.setenv("HOME", str(tmp_path))
    bare.setenv("USER", "me")
    before = dict(os.environ)
    provide_home()
    assert dict(os.environ) == before


def test_a_command_line_provides_them_before_it_imports_anything_slow(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef unknown(*_):\n    raise KeyError('uid not found')\npwd.getpwuid = pwd.getpwnam = unknown\n"
    )
    code = (
        "from framework.cli import main\ntry:\n    main(['ls', 'loss'])\nexcept SystemExit as ended:\n"
        "    assert not ended.code\nimport getpass, os, pathlib\n"
        "print(getpass.getuser(), pathlib.Path.home(), os.environ['NUMBA_CACHE_DIR'])"
    )
    environment = {
        "PATH": os.defpath,
        "HOME": "/",
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, home, cache = done.stdout.splitlines()[-1].split()
    assert (name, home) == (f"uid{os.getuid()}", "/") and Path(cache).is_relative_to(tmp_path)

"""A home folder and a user name for libraries that ask for one, in containers that run under a bare user id."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

# Variables of libraries that fail, or warn at each start, where they cannot write to their cache below the home folder:
# numba (imported by umap), matplotlib and triton. Their caches can always be made again; models are not among them.
CACHES = {"NUMBA_CACHE_DIR": "numba", "MPLCONFIGDIR": "matplotlib", "TRITON_HOME": "triton"}


def provide_home() -> None:
    """Sets environment variables that the system leaves open: a user name, a home folder, and folders of caches below
    the temporary folder if the home folder is not writable. Variables that are set already stay.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the id has no entry in the user database
        os.environ["USER"] = f"uid{os.getuid()}"
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.expanduser raises where there is none
    if home.is_absolute() and os.access(home, os.W_OK | os.X_OK) and home != Path(os.sep):
        return
    folder = Path(tempfile.gettempdir()) / f"sonoscribe-home-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # somebody else's
            folder = Path(tempfile.mkdtemp(prefix="sonoscribe-home-"))
    except OSError:
        return  # no temporary folder either; libraries report what they miss
    if not home.is_absolute():
        os.environ["HOME"] = str(folder)
    for name, own in CACHES.items():
        os.environ.setdefault(name, str(folder / own))

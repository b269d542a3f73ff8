"""`accelerate launch -m framework.cli RECIPE`, for installations without launch.py. Grid cells run it by its path."""

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the import ends Python without a traceback

HERE = Path(__file__).resolve().parent
if Path(sys.path[0]).resolve() == HERE:  # run by its path; plugins.py in this folder would shadow the package `plugins`
    del sys.path[0]
    root = str(HERE.parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)

from framework.cli import main  # noqa: E402

if __name__ == "__main__":  # the image cache's worker processes run this file again under another name
    main()

"""Command line: `python launch.py RECIPE [key=value ...]` or `accelerate launch launch.py ...`; see framework/cli/."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the import ends Python without a traceback

from framework.cli import main

if __name__ == "__main__":
    main()

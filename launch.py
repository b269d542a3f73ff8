"""Command line: `python launch.py RECIPE [key=value ...]` or `accelerate launch launch.py ...`; see framework/cli/."""

from framework.cli import main

if __name__ == "__main__":
    main()

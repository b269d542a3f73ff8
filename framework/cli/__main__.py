"""`accelerate launch -m framework.cli RECIPE`, where the package is installed and no launch.py lies at hand."""

from framework.cli import main

main()

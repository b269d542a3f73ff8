"""The door: `python launch.py RECIPE [key=value ...]`, or under `accelerate launch`; framework/cli/ has the verbs."""

from framework.cli import main

if __name__ == "__main__":
    main()

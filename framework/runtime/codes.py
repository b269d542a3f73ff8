"""Every code of an error that a user can cause: what it means, and what to do.

docs/troubleshooting.md is generated from this table; tests/docs/test_troubleshooting.py checks that each code is used.
A code names the mistake, not the place: `unknown-key` is the same in a recipe, a grid and a plugin's block.
"""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    # Recipes and grids
    "unknown-key": (
        "No part of this name takes such a key.",
        "Correct the spelling; `launch.py describe KIND NAME` lists the keys.",
    ),
    "unknown-name": (
        "Nothing is registered or known under this name.",
        "Take one of the names that the message lists; `launch.py ls` prints all plugins.",
    ),
    "missing-key": (
        "A required value is not set.",
        "Set the key that the message names.",
    ),
    "wrong-type": (
        "The value is of another type than expected.",
        "Write the type that the message names; quote texts that YAML would read as numbers or booleans.",
    ),
    "out-of-range": (
        "The value is outside its bounds.",
        "Choose a value within the bounds that the message names.",
    ),
    "does-not-divide": (
        "One number must be a multiple of the other.",
        "Change one of the two numbers that the message names.",
    ),
    "conflicting-settings": (
        "Two settings exclude each other.",
        "Remove one of the two, or change it as the message says.",
    ),
    "ignored-setting": (
        "The setting has no effect beside the others.",
        "Remove it, or set what it needs.",
    ),
    "renamed-key": (
        "The key has another name since version 0.6.",
        "Write the new key, which the message names.",
    ),
    # Files and folders
    "no-such-file": (
        "The file or folder does not exist.",
        "Correct the path; paths are relative to the current folder unless the message says otherwise.",
    ),
    "unreadable-file": (
        "The file exists but cannot be read.",
        "Check its permissions, its encoding, and that it is not a folder.",
    ),
    "damaged-file": (
        "The file does not contain what was written to it.",
        "Copy the file again from its source, or delete it and let the command write it again.",
    ),
    "wrong-format": (
        "The file is of another format or version than expected.",
        "Name a file of the expected format, or write it again with this version.",
    ),
    "file-exists": (
        "The command would overwrite a file.",
        "Choose another name or folder, or delete the file first.",
    ),
    # Data
    "empty-split": (
        "A split has no exams.",
        "Give each split at least one exam.",
    ),
    "empty-report": (
        "An exam has no report.",
        "Write its report, or leave the exam out.",
    ),
    "duplicate-id": (
        "Two items have the same id.",
        "Give each its own id, or remove the copy.",
    ),
    "broken-image": (
        "An image cannot be decoded, or has an unexpected shape or type.",
        "Replace the image, or list it where the dataset excludes images.",
    ),
    # Models and weights
    "unsupported": (
        "This combination does not work.",
        "Choose one of the alternatives that the message names.",
    ),
    "weights-differ": (
        "The weights in a folder are not those that the model was trained with.",
        "Put the original weight files back, or train the part again.",
    ),
    "does-not-fit": (
        "The sizes or the vocabulary of two parts do not match.",
        "Change one of the two as the message says.",
    ),
    # Installation
    "external-program": (
        "A program that is not part of Sonoscribe failed or did not answer.",
        "Run it by hand to see why; the message names it.",
    ),
    "needs-gpu": (
        "The setting works on a GPU only.",
        "Run on a machine with a GPU, or choose a value that the message names.",
    ),
    "missing-package": (
        "An optional package is not installed.",
        "Install it with the command in the message.",
    ),
    # Runs and checkpoints
    "cannot-write": ("A file could not be written.", "Fix the cause that the message gives, such as a full disk."),
    "damaged-checkpoint": (
        "A file of a checkpoint is missing or changed.",
        "Copy the checkpoint again, resume from another one, or start over with resume=never.",
    ),
    "in-use": ("Another process is writing to the same folder.", "Stop it, or wait until it ends."),
    "no-checkpoint": ("There is no checkpoint to resume from.", "Name a run with checkpoints, or use resume=never."),
    "no-model": ("There is no model to load.", "Name a run that has validated at least once."),
    "non-finite": (
        "A loss or gradient is NaN or infinite.",
        "Look at the exams that the message names; lower optimizer.lr, or set train.max_grad_norm.",
    ),
    "out-of-memory": (
        "The GPU cannot hold the micro-batch.",
        "Set what the message names: a smaller micro-batch, activation checkpointing, smaller images, or fsdp.",
    ),
    "recipe-differs": (
        "A run is resumed with other values than it was trained with.",
        "Restore the values, start over with resume=never, or list the keys in resume_ignore.",
    ),
    "topics-differ": (
        "The topics of the training reports changed since the run started.",
        "Restore data.cache_dir or the library versions, or set resume_ignore=[distiller].",
    ),
    "wrong-version": ("Another version of Sonoscribe wrote the file.", "Use that version, or train again."),
}

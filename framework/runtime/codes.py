"""Every code of an error that a user can cause: what it means, and what to do.

docs/troubleshooting.md is generated from this table; tests/docs/test_troubleshooting.py checks that each code is used.
A code names the mistake, not the place: `unknown-key` is the same in a recipe, a grid and a plugin's block.
"""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    # Recipes and grids
    "unknown-key": (
        "The key does not exist at this place.",
        "Take the nearest match that the message names, or see docs/reference and `describe` for the known keys.",
    ),
    "renamed-key": (
        "The key has another name since version 0.6.",
        "Write the new key, which the message names.",
    ),
    "missing-key": (
        "A required key is not set.",
        "Set the key; the message names the type of its value.",
    ),
    "unknown-name": (
        "Nothing has this name: no plugin, recipe, choice, score or part of the model.",
        "Take the nearest match or one of the known names that the message lists.",
    ),
    "duplicate-key": (
        "A key occurs twice in one block.",
        "Delete one of the two.",
    ),
    "duplicate-name": (
        "Two plugins, metrics or rows have the same name.",
        "Rename or remove one of them. A plugin file may replace a plugin with replace=True.",
    ),
    "wrong-type": (
        "The value has the wrong type.",
        "Write a value of the expected type. Write numbers and true/false without quotes.",
    ),
    "out-of-range": (
        "The number is too small, too large or not finite.",
        "Choose a number within the bounds that the message names.",
    ),
    "does-not-divide": (
        "One number must be a multiple of another and is not.",
        "Take one of the numbers that the message names.",
    ),
    "wrong-format": (
        "A file, value or command-line word is not written as it must be.",
        "Write it as the message shows. Use a saved recipe of another version with that version, or train again.",
    ),
    "invalid-yaml": (
        "The file is not plain YAML: a syntax error, a tag or an anchor.",
        "Look at the line and column of the message; most often a bracket, colon, quote or indentation is wrong.",
    ),
    "invalid-reference": (
        "A reference ${a.b} cannot be replaced by the value of a.b.",
        "Refer to a single value that the recipe sets, and not back to the same key.",
    ),
    "conflicting-settings": (
        "Two settings contradict each other.",
        "Change one of the two; the message names both.",
    ),
    "ignored-setting": (
        "The setting would have no effect beside the other settings.",
        "Remove it, or change the setting on which it depends.",
    ),
    "unsupported": (
        "The combination or form is not supported.",
        "Take the alternative that the message names.",
    ),
    "missing-input": (
        "A part of the model needs an input that no other part provides.",
        "Choose one of the plugins that the message names, or remove the part that needs the input.",
    ),
    "nothing-to-train": (
        "No loss has a weight above 0, or no loss trains the decoder.",
        "Add a loss, or freeze the part that is not trained.",
    ),
    "mirrored-sides": (
        "Images are mirrored while their reports name a side.",
        "Set the key that mirrors images to 0: a mirrored left is a right.",
    ),
    # Plugins
    "invalid-plugin": (
        "A plugin file, its registration, signature or class attribute cannot be read.",
        "Change the line that the message names; `launch.py new KIND NAME` writes a plugin that works.",
    ),
    "import-failed": (
        "Python cannot import the plugin.",
        "Read the reason in the message: most often a package is missing or the file has a bug.",
    ),
    "untrusted-code": (
        "A saved model or run comes with plugin files, or a command that reads its data, that you have not trusted.",
        "Read what the message lists; then repeat the command with --trust.",
    ),
    "shadowed-package": (
        "The name of one of Sonoscribe's packages finds another package, often a folder of your project.",
        "Rename your folder, or start the command line with launch.py or `sonoscribe`.",
    ),
    # Files and folders
    "no-such-file": (
        "The file or folder does not exist.",
        "Check the path; relative paths start at the folder that the message shows.",
    ),
    "unreadable-file": (
        "The file exists and cannot be read.",
        "Check its permissions, its size and that it is UTF-8 text.",
    ),
    "file-exists": (
        "The file exists already, and nothing is overwritten.",
        "Choose another name, or move the file away.",
    ),
    "damaged-file": (
        "The file does not contain what was written to it.",
        "Copy the file again from its source, or delete it and let the command write it again.",
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
        "An image is missing, cannot be decoded, or has an unexpected shape or type.",
        "Replace the image, list it where the dataset excludes images, or set data.on_broken: skip.",
    ),
    "suspicious-image": (
        "A warning: all pixels of an image are equal, or it equals an image of another split.",
        "Look at the image.",
    ),
    "unused-split": (
        "A warning: no command uses a split of this name.",
        "Name it train, val or test.",
    ),
    "too-few-reports": (
        "The training reports are too few, or too similar, for this number of topics or dimensions.",
        "Lower the number as the message says, or use another distiller.",
    ),
    "split-leak": (
        "A patient is in two splits, or a model was trained on patients of the split that it is scored on.",
        "Split by patient, and use the same splits in every stage. Different people need different ids.",
    ),
    "exams-differ": (
        "Two machines read different exams, or two runs that are compared have different test exams.",
        "Copy the data to all machines again; compare runs of one data set.",
    ),
    # Models and weights
    "weights-differ": (
        "The weights in a folder are not those that the model was trained with.",
        "Put the original weight files back, or train the part again.",
    ),
    "does-not-fit": (
        "The sizes or the vocabulary of two parts do not match.",
        "Change one of the two as the message says.",
    ),
    # Runs and checkpoints
    "out-of-memory": (
        "The GPU or the machine cannot hold the micro-batch.",
        "Set what the message names: a smaller micro-batch, activation checkpointing, smaller images, or fsdp.",
    ),
    "cannot-write": (
        "A file could not be written.",
        "Fix the cause that the message gives, such as a full disk.",
    ),
    "damaged-checkpoint": (
        "A file of a checkpoint is missing or changed.",
        "Copy the checkpoint again, resume from another one, or start over with resume=never.",
    ),
    "in-use": (
        "Another process is writing to the same folder.",
        "Stop it, or wait until it ends.",
    ),
    "no-checkpoint": (
        "There is no checkpoint to resume from.",
        "Name a run with checkpoints, or use resume=never.",
    ),
    "no-model": (
        "There is no model to load.",
        "Name a run that has validated at least once.",
    ),
    "non-finite": (
        "A loss, gradient or saved weight is NaN or infinite.",
        "Look at the exams or tensors that the message names; lower optimizer.lr, or set train.max_grad_norm.",
    ),
    "recipe-differs": (
        "A run is resumed with other values than it was trained with.",
        "Restore the values, start over with resume=never, or list the keys in resume_ignore.",
    ),
    "topics-differ": (
        "The topics of the training reports changed since the run started.",
        "Restore data.cache_dir or the library versions, or set resume_ignore=[distiller].",
    ),
    "wrong-version": (
        "Another version of Sonoscribe wrote the file.",
        "Use that version, or train again.",
    ),
    "hub-refused": (
        "The model hub cannot be reached, or refuses: without a token, or with one that may not do this.",
        "Set HF_TOKEN or run `hf auth login`; check the network and HF_ENDPOINT.",
    ),
    # Requests to `serve`
    "too-large": (
        "A request has more bytes, images or exams than the server accepts.",
        "Send less at once; the message names the limit.",
    ),
    "queue-full": (
        "As many requests are waiting as the server accepts.",
        "Send the request again after the seconds of the header Retry-After.",
    ),
    "foreign-request": (
        "A request names another host than the server, or comes from a page of another site.",
        "Open the page by the address that `serve` prints; name a further host by --host.",
    ),
    "internal-error": (
        "The server failed for a reason that is not in the request.",
        "Read the traceback in the terminal of the server, and report it.",
    ),
    # Installation
    "no-shared-memory": (
        "The folder /dev/shm, through which processes share locks, is missing, full or not writable.",
        "Mount it with some free space; `docker run --shm-size=1g` sets its size in a container.",
    ),
    "unguarded-script": (
        "Decoding processes import the script that started them, and it starts the same work again.",
        'Put what the script does under `if __name__ == "__main__":`.',
    ),
    "external-program": (
        "A program that is not part of Sonoscribe failed or did not answer.",
        "Run it by hand to see why; the message names it.",
    ),
    "needs-gpu": (
        "The setting works on a GPU only.",
        "Run on a machine with a GPU, or choose a value that the message names.",
    ),
    "cluster-unavailable": (
        "Slurm or Ray does not answer, or refuses the jobs of a grid.",
        "Follow the message of the cluster; `--executor local` runs the grid on this machine.",
    ),
    "missing-package": (
        "An optional package is not installed.",
        "Install it with the command in the message.",
    ),
}

"""What training writes to resume and to predict: the format of checkpoints, their saver, the exported model."""

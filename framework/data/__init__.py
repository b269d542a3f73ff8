"""From a data set's exams to batches: loading, image cache, image files, checks, export, leakage."""

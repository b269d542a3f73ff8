"""Topics of the training reports: distilled once and cached, their number, quality, and plot."""

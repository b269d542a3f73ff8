"""A run's folder and its lifecycle: open, resume, refuse, starting weights, tracking."""

"""What a recipe will build and cost: `plan.py` estimates from sizes alone, `probe.py` times a few real steps."""

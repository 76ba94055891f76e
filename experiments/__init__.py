"""What a person runs: `python -m experiments <command> <preset> [--overrides]`."""

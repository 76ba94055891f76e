"""Data-free synthesis: one file per method, each with `init`, `update` and `sample`."""

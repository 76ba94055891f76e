"""Timings: our steps beside eager PyTorch's, and what the vaccine costs."""

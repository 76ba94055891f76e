"""Backdoor attacks: triggers, and who in a training set carries them."""

"""Defenses that plug into any data-free method: the vaccine screens images, retrospection adds a gradient."""

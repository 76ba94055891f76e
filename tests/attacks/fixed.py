"""The triggers that need nothing but the image."""

from abd_jax.attacks import triggers

TRIGGERS = {
    "badnet_grid": triggers.badnet_grid,
    "badnet_sq": triggers.badnet_sq,
    "blend": triggers.blend,
    "cl": triggers.corners,
    "pixels": triggers.pixels,
    "sig": triggers.sig,
    "sig_at_test": triggers.sig_at_test,
    "sig_square": triggers.sig_square,
    "sig_square_at_test": triggers.sig_square_at_test,
    "trojan_3x3": triggers.trojan_3x3,
    "trojan_8x8": triggers.trojan_8x8,
    "trojan_wm": triggers.trojan_wm,
}

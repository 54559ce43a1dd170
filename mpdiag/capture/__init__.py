"""Hooks -> a device table of exponent counts -> Capture. Observes; never changes a bit of the training."""

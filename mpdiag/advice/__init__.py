"""Capture -> Advice: the loss scale, the findings, what stays in FP32. Integer arithmetic on small tables, no torch."""

from mpdiag.advice.from_capture import advise, window_at

__all__ = ["advise", "window_at"]

"""Capture -> Advice: the loss scale, the findings, what stays in FP32. Integer arithmetic on small tables, no torch."""

from mpdiag.advice.from_capture import advise

__all__ = ["advise"]

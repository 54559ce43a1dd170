"""Trials -> Verification: mixed precision really trained beside FP32, and what the difference says."""

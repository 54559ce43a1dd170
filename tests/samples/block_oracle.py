"""Real block quantisation with ml_dtypes, written from the specifications: what truly becomes zero."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def blocks(values: np.ndarray, length: int, size: int) -> np.ndarray:
    """[blocks, size] float32, rows of `length` filled up with zeros; what is not finite counts as zero."""
    rows = np.where(np.isfinite(values), values, 0).astype(np.float32).reshape(-1, length)
    return np.pad(rows, ((0, 0), (0, -length % size))).reshape(-1, size)


def scale_exponents(largest: np.ndarray, element_max: float, up: bool) -> np.ndarray:
    """log2 of MX scales. up: no element may overflow; else OCP MX 1.0, section 6.3 (element_max: 448 or 57344)."""
    some = np.where(largest > 0, largest, 1.0).astype(np.float64)
    if up:
        mantissa, exponent = np.frexp(some / element_max)  # in [0.5, 1): an exact power of two is its own ceiling
        return np.where(mantissa == 0.5, exponent - 1, exponent)
    return np.frexp(some)[1] - 1 - (np.frexp(element_max)[1] - 1)


def mx_zeros(values: np.ndarray, length: int, dtype, up: bool = True) -> tuple[int, int]:
    """(elements that become zero, those of them that sat exactly on the tie) in MXFP8."""
    some = blocks(values, length, 32)
    element_max = float(ml_dtypes.finfo(dtype).max)
    scale = np.exp2(scale_exponents(np.abs(some).max(axis=1), element_max, up)).astype(ml_dtypes.float8_e8m0fnu)
    scaled = some.astype(np.float64) / scale.astype(np.float64)[:, None]
    cast = np.clip(scaled, -element_max, element_max).astype(dtype).astype(np.float64)
    tie = float(ml_dtypes.finfo(dtype).smallest_subnormal) / 2
    zero = (cast == 0) & (some != 0)
    return int(zero.sum()), int((zero & (np.abs(scaled) == tie)).sum())


def nvfp4_zeros(values: np.ndarray, length: int) -> tuple[int, int]:
    """(elements that become zero, those of blocks whose scale is zero) in NVFP4, rounded to nearest.

    A tensor's scale is largest / (448 * 6) in FP32, a block's largest / 6 over it in E4M3 (arXiv 2509.25149, app. B).
    """
    some = blocks(values, length, 16)
    largest = np.abs(some).max(axis=1)
    if not largest.any():
        return 0, 0
    whole = np.float64(largest.max()) / (448.0 * 6.0)
    scale = np.minimum(largest / 6.0 / whole, 448.0).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * whole
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scale[:, None] > 0, some / scale[:, None], 0.0)
    cast = np.clip(scaled, -6.0, 6.0).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    zero = (cast == 0) & (some != 0)
    return int(zero.sum()), int((zero & (scale == 0)[:, None]).sum())


def decibels(values: np.ndarray, rounded: np.ndarray) -> float:
    """Signal to rounding noise; what is not finite is left out."""
    kept = np.isfinite(values)
    wide, near = values[kept].astype(np.float64), rounded[kept].astype(np.float64)
    return float(10 * np.log10((wide**2).sum() / ((wide - near) ** 2).sum()))


def mx_decibels(values: np.ndarray, length: int, dtype) -> float:
    """Signal to rounding noise of MXFP8."""
    some = blocks(values, length, 32)
    element_max = float(ml_dtypes.finfo(dtype).max)
    scale = np.exp2(scale_exponents(np.abs(some).max(axis=1), element_max, True))[:, None]
    return decibels(some, (some / scale).astype(dtype).astype(np.float64) * scale)


def nvfp4_decibels(values: np.ndarray, length: int) -> float:
    """Signal to rounding noise of NVFP4, rounded to nearest."""
    some = blocks(values, length, 16)
    largest = np.abs(some).max(axis=1)
    whole = np.float64(largest.max()) / (448.0 * 6.0)
    scale = np.minimum(largest / 6.0 / whole, 448.0).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)[:, None] * whole
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.clip(np.where(scale > 0, some / scale, 0.0), -6.0, 6.0)
    return decibels(some, scaled.astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * scale)

"""The tables under reports/, written from the JSONs alone."""

from __future__ import annotations

import statistics
from typing import Any

from capture_rows import judged, with_intervals
from count_kernel_page import kernel_page
from loss_scale_page import loss_scale_page
from made_on import made_on
from prediction_page import prediction_page


def emulation_page(record: dict[str, Any]) -> str:
    lines = [
        "# The emulated CUDA autocast policy against the real one",
        "",
        f"{made_on(record)}. The small models of tests/targets/, {record['steps']} AdamW steps from one start on the "
        "same batches, FP16 with a loss scale of 2^14, TF32 off.",
        "",
        "Types: modules whose output, or parameters whose copy, has another type under the emulation than on the GPU. "
        "Differences: largest over the steps, relative to the first loss.",
        "",
        "| kind of model | modules | types that differ | FP16 against FP32, on the GPU | emulation on the CPU against "
        "FP16 on the GPU | FP32 on the CPU against FP32 on the GPU |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = record["rows"]
    for row in rows:
        off = len(row["dtype_mismatches"]) + len(row["cast_mismatches"])
        lines.append(
            f"| {row['kind']} | {row['modules']} | {off} | {row['fp16_against_fp32']:.1e} | "
            f"{row['emulated_against_fp16']:.1e} | {row['cpu_against_gpu_fp32']:.1e} |"
        )
    ratio = statistics.median(row["emulated_against_fp16"] / row["fp16_against_fp32"] for row in rows)
    lines += [
        "",
        f"Median over the kinds: the emulation is {ratio:.2f} times as far from the GPU's FP16 as that is from FP32.",
        "",
    ]
    return "\n".join(lines)


def capture_page(record: dict[str, Any]) -> str:
    rows = with_intervals(record["rows"])
    targets = judged(rows) if record["targets"] else []
    lines = [
        "# What observing costs",
        "",
        f"{made_on(record)}.",
        "",
        "FP32 (IEEE), AdamW (fused on CUDA). Blocks of steps of every arm, interleaved in random order; a block's time "
        "is its mean step by the wall clock between two synchronizations. Ratio: geometric mean over rounds against "
        "the no-hooks block of the same round, with a 95 % interval from three rounds on (on each side the wider end "
        "of Student's t on the logarithms and a bias-corrected bootstrap), made from the saved blocks. No hooks again "
        "is the control: what noise alone gives. Extra memory: torch's peak less that of no hooks. Allocations: calls "
        "of torch's allocator a step. Tensors and elements: of a step that is observed.",
        "",
        *(f"- {model}: {subject}" for model, subject in {row["model"]: row["subject"] for row in rows}.items()),
        "",
        "| model | arm | ms a step | ratio | 95 % | smallest to largest | rounds | extra MiB | allocations | tensors | "
        "million elements |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_capture_row(row) for row in rows if "not_measured" not in row]
    for row in rows:
        if "not_measured" in row:
            what = f", {row['what']}" if row["arm"] else ""
            lines += ["", f"{row['model']}{what}: not measured: {row['not_measured']}"]
    for reason in sorted({row["memory_not_measured"] for row in rows if "memory_not_measured" in row}):
        lines += ["", f"Memory and allocations: not measured: {reason}."]
    for path in sorted({row["counted_by"] for row in rows if row.get("counted_by")}):
        lines += ["", f"mpdiag counted by: {path}."]
    if targets:
        lines += [
            "",
            "## Targets",
            "",
            "met: the whole interval within the limit; missed: the whole interval beyond it; open: neither. Memory: "
            "64 MiB or 1 % of the peak without hooks, whichever is more.",
            "",
            "| model | arm | quantity | limit | measured | verdict |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for line in targets:
            figures = " | ".join(f"{line[key]:.3f}" for key in ("limit", "measured"))
            lines.append(f"| {line['model']} | {line['what']} | {line['quantity']} | {figures} | {line['verdict']} |")
        lines += _without_limit(rows, targets)
    else:
        lines += ["", f"Targets: not judged: {record['targets_not_judged']}."]
    return "\n".join(lines) + "\n"


def _without_limit(rows: list[dict[str, Any]], targets: list[dict[str, object]]) -> list[str]:
    """The step times of ours for which no limit was set, so that nobody takes them for met."""
    limited = {(line["model"], line["arm"]) for line in targets if line["quantity"] == "step time ratio"}
    ours = [row for row in rows if str(row["arm"]).startswith("mpdiag") and "not_measured" not in row]
    told = [f"{row['model']}, {row['what']}" for row in ours if (row["model"], row["arm"]) not in limited]
    return ["", f"No limit was set for the step time of: {'; '.join(told)}."] if told else []


def _capture_row(row: dict[str, Any]) -> str:
    low, high = row["interval_95"] or (None, None)
    cells = [row["model"], row["what"], f"{row['ms']:.1f}"]
    if row["arm"] == "none":
        cells += ["1", "", ""]
    else:
        cells += [f"{row['ratio']:.3f}", "" if low is None else f"{low:.3f} to {high:.3f}"]
        cells.append(f"{row['smallest_ratio']:.3f} to {row['largest_ratio']:.3f}")
    cells.append(str(row["rounds"]))
    cells.append("" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 2**20:.1f}")
    cells.append("" if row["allocations_a_step"] is None else f"{row['allocations_a_step']:.0f}")
    cells += ["", ""] if row["tensors"] is None else [str(row["tensors"]), f"{row['elements_a_step'] / 1e6:.1f}"]
    return "| " + " | ".join(cells) + " |"


def harness_page(record: dict[str, Any]) -> str:
    reach = record["reach"]
    lines = [
        "# What mpdiag's training loop costs",
        "",
        f"{made_on(record)}.",
        "",
        "The loop that mpdiag verifies and times with, against the AMP recipe written by hand: the same model, "
        "batches, optimizer and precision, in blocks that take turns. Time: geometric mean of the ratios over rounds "
        "with its 95 % interval. Memory: torch's peak over warm steps (max_memory_allocated), once for each loop "
        f"with nothing else on the device. Reach: both within {reach - 1:.0%}.",
        "",
        "| job | precision | by hand, ms a step | time, mpdiag / by hand | by hand / itself | rounds "
        "| by hand, peak MiB | memory, mpdiag / by hand | within reach |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    missing = {}
    for row in record["rows"]:
        low, high = row["ratio_interval"]
        again = row["control_interval"]
        peaks = row.get("peak_bytes") or {}
        more = peaks["harness"] / peaks["by hand"] if peaks else None
        if more is None:
            missing[row.get("memory_not_measured") or "this record is older than that measurement"] = None
        within = "yes" if 2 - reach < low and high < reach and (more is None or more < reach) else "no"
        lines.append(
            f"| {row['subject']} | {row['precision']} | {row['step_ms']['by hand']:.2f} | {row['ratio']:.4f} "
            f"({low:.4f} to {high:.4f}) | {row['control']:.4f} ({again[0]:.4f} to {again[1]:.4f}) | {row['rounds']} | "
            + ("|  |" if more is None else f"{peaks['by hand'] / 2**20:.1f} | {more:.4f} |")
            + f" {within}{', time alone' if more is None else ''} |"
        )
    lines += [f"\nMemory: not measured: {reason}." for reason in missing]
    return "\n".join([*lines, ""])


PAGES = {
    "emulation": (emulation_page, "the emulated CUDA autocast policy against the real one."),
    "count_kernel": (kernel_page, "the counting kernel against torch's own reductions over the same bytes."),
    "capture": (capture_page, "what observing costs a training step, beside other tools."),
    "prediction": (prediction_page, "what FP32 foretells of FP16 a tensor, by a rounded pass and by counts."),
    "loss_scale": (loss_scale_page, "the recommended loss scale against other policies."),
    "harness": (harness_page, "what mpdiag's own training loop costs beside one written by hand."),
}
"""Name of the benchmark, of its JSON and of its page -> the page and what it is about."""

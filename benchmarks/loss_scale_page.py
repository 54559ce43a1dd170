"""reports/loss_scale.md, from its JSON alone."""

from __future__ import annotations

import math
import statistics
from typing import Any

from loss_scale_reach import COUNTED, LEFT_OUT, OURS, reach
from made_on import made_on


def loss_scale_page(record: dict[str, Any]) -> str:
    rows = record["rows"]
    lines = [
        "# Loss scales: ours against others",
        "",
        f"{made_on(record, ', FP16 emulated, jobs made small')}. Steps a run: {record['steps']}. The same seeds, "
        "weights and batches for all policies of a job.",
        "",
        *(f"- {name}: {what}" for name, what in record["policies"].items()),
        "",
        *_summary(rows),
        "",
        "## Reached",
        "",
        "| what | limit | measured | verdict | misses |",
        "| --- | --- | --- | --- | --- |",
    ]
    for line in reach(rows):
        measured = "without bound" if line["measured"] is None else f"{line['measured']:.3g}"
        misses = "; ".join(line["misses"][:8]) + (" ..." if len(line["misses"]) > 8 else "")
        times = f" {len(line['misses'])} times" if len(line["misses"]) > 1 else ""
        verdict = "met" if line["met"] else f"missed{times}"
        lines.append(f"| {line['what']} | {line['limit']} | {measured} | {verdict} | {misses} |")
    most = max((p["energy_lost"] for r in rows if r["policy"] == OURS for p in r.get("lost", []) if "energy_lost" in p),
               default=None)  # fmt: skip
    lines += _two_rules(record)
    lines += [
        "",
        "By count, a scale one octave lower loses about twice the elements: within 1.1 times of the best is within "
        "0.14 octaves of whichever policy stands highest at that step, which is where steps are skipped. "
        + (
            ""
            if most is None
            else f"What ours lost so carried at most {most:.1e} of the squared norm at any checkpoint."
        ),
    ]
    lines += [
        "",
        "## Job by job",
        "",
        "Skipped: steps without an update, a seed each; in brackets those after the first step. Settled: the first "
        "step from which on the scale stays within a factor of 2, a seed each. Lost: of the gradient elements that "
        "are not zero in FP32 those that are in FP16 at the policy's scale of that step, on the FP32 run's weights, "
        "and their share of the squared norm; mean over seeds and checkpoints. Overflows: checkpoints at which the "
        "gradients overflow at that scale; they are in no mean. Loss: mean of the last 50 steps, less that of FP32 on "
        "the same seed, a seed each; with FP32 the losses themselves.",
        "",
        *(f"- {name}: {what}" for name, what in record["jobs"].items()),
        "",
        "| job | policy | log2 scale, first to last | skipped | settled | elements lost | energy lost | overflows | "
        "loss against FP32 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for job, policy in dict.fromkeys((row["job"], row["policy"]) for row in rows):
        lines.append(_loss_scale_row([row for row in rows if (row["job"], row["policy"]) == (job, policy)], rows))
    if record["cut"]:
        lines += ["", f"Not run: {'; '.join(record['cut'])}."]
    return "\n".join(lines) + "\n"


def _two_rules(record: dict[str, Any]) -> list[str]:
    """Which of the two means is the target, and why there is another."""
    overflows: dict[str, int] = {}
    for row in record["rows"]:
        found = sum("overflowed" in point for point in row.get("lost", []))
        overflows[row["policy"]] = overflows.get(row["policy"], 0) + found
    told = ", ".join(f"{policy} {count}" for policy, count in overflows.items() if count)
    when = "after these runs" if "reach" in record else "after the first runs"  # which wrote down what they reached
    return [
        "",
        f'Each mean stands there twice. The target was set as "{LEFT_OUT}"; "{COUNTED}" was added {when}, when the '
        "first was seen to favour a policy that overflows: the step is skipped, and what it would have lost is in no "
        f"mean. Checkpoints with an overflow: {told or 'none'}. What the first rule says stands.",
    ]


def _loss_scale_row(seeds: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    fp32 = {(row["job"], row["seed"]): row["final_loss"] for row in rows if row["policy"] == "fp32"}
    advised = [row["advice"] for row in seeds if "advice" in row]
    windows = [f"{a['mode']}, window {a['window_log2'][0]} to {a['window_log2'][1]}" for a in advised]
    cells = [seeds[0]["job"], seeds[0]["policy"] + (f" ({'; '.join(dict.fromkeys(windows))})" if windows else "")]
    if seeds[0]["policy"] == "fp32":
        return f"| {' | '.join(cells)} | | | | | | | {', '.join(_loss(row['final_loss']) for row in seeds)} |"
    cells.append(", ".join(f"{row['first_log2_scale']:.3g} to {row['final_log2_scale']:.3g}" for row in seeds))
    cells.append(", ".join(f"{row['skipped']} ({row['skipped_after_first']})" for row in seeds))
    cells.append(", ".join(str(row["settled"]) for row in seeds))
    points = [point for row in seeds for point in row["lost"]]
    for what in ("share_lost", "energy_lost"):
        values = [point[what] for point in points if what in point]
        cells.append(f"{statistics.fmean(values):.1e}" if values else "")
    cells.append(str(sum("overflowed" in point for point in points)))
    cells.append(", ".join(_loss(row["final_loss"], fp32[row["job"], row["seed"]]) for row in seeds))
    return "| " + " | ".join(cells) + " |"


def _loss(value: float | None, reference: float | None = 0.0) -> str:
    if value is None or reference is None:
        return "not finite"
    return f"{value:.4g}" if reference == 0.0 else f"{value - reference:+.2g}"


def _summary(rows: list[dict[str, Any]]) -> list[str]:
    """One line a policy, over all jobs and seeds."""
    lines = [
        "## Over all jobs and seeds",
        "",
        "Skipped: steps without an update, after the first. Settled: the step from which on the scale stays within a "
        "factor of 2, the median. Elements lost: zero in FP16 and not in FP32, mean over checkpoints. Energy lost: "
        "their share of the squared norm, the most at any checkpoint at which nothing overflowed. Overflows: "
        "checkpoints at which something did. Loss: median of |loss - FP32's| / FP32's.",
        "",
        "| policy | runs | runs without a skip | steps skipped | settled | elements lost | energy lost | overflows | "
        "loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    fp32 = {(row["job"], row["seed"]): row["final_loss"] for row in rows if row["policy"] == "fp32"}
    for policy in dict.fromkeys(row["policy"] for row in rows if row["policy"] != "fp32"):
        runs = [row for row in rows if row["policy"] == policy]
        clean = sum(not row["skipped_after_first"] and not row["nonfinite_losses"] for row in runs)
        points = [point for row in runs for point in row.get("lost", [])]
        kept = [point for point in points if "share_lost" in point]
        apart = [_apart(row["final_loss"], fp32.get((row["job"], row["seed"]))) for row in runs]
        cells = [
            policy,
            str(len(runs)),
            f"{clean} ({100 * clean / len(runs):.0f} %)",
            str(sum(row["skipped_after_first"] for row in runs)),
            f"{statistics.median(row['settled'] for row in runs):.0f}",
            f"{statistics.fmean(p['share_lost'] for p in kept):.1e}" if kept else "",
            f"{max(p['energy_lost'] for p in kept):.1e}" if kept else "",
            str(len(points) - len(kept)),
            f"{statistics.median(apart):.2g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _apart(loss: float | None, reference: float | None) -> float:
    if loss is None or not reference:
        return math.inf
    return abs(loss - reference) / abs(reference)

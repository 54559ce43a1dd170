"""Write docs/checks.md from the checks: `python docs/make_checks.py`. A test fails where the page is out of date."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

from mpdiag.advice.checks import ALL
from mpdiag.advice.checks.check import Rule
from mpdiag.diagnosis import SEVERITIES
from mpdiag.finding import Certainty

PAGE = Path(__file__).with_name("checks.md")

FAMILIES = {
    "MP1": "Range of the forward pass",
    "MP2": "Gradients and the loss scale",
    "MP3": "Operators and constants",
    "MP4": "Performance",
    "MP5": "The training loop",
    "MP6": "The verification's runs",
    "MP7": "FP8",
}

_OWN_LOOP = "not seen by a scan: backward and step are mpdiag's there, and the job's own loop is never run"
_TRAINS_ITSELF = (
    "in the job's own loop: a scan never runs it, and a Probe on it has hooks at gradients and steps, none between "
    "clipping and unscale_. Seen where the code that computes the loss trains a part itself"
)

# rule -> (its name, codes that answer it, what they leave out and why)
RULES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "R01": ("gradients underflow", ("MP201",), ""),
    "R02": ("gradients are subnormal", ("MP206",), ""),
    "R03": (
        "the scale in use leaves headroom unused",
        (),
        "is about a loss scale that is in use; the one that mpdiag recommends lies in the window by construction",
    ),
    "R04": ("gradients overflow", ("MP203", "MP202"), ""),
    "R05": ("no scale serves all gradients", ("MP204",), ""),
    "R06": ("a layer's gradient is dead in FP16", ("MP604",), ""),
    "R07": ("many steps are skipped", ("MP601",), ""),
    "R08": ("the loss scale collapses", ("MP602",), ""),
    "R09": ("not finite at scale 1", ("MP606", "MP102"), ""),
    "R10": ("a sawtooth of the scale is healthy", ("MP603",), ""),
    "R11": ("a scaler beside BF16", ("MP515",), ""),
    "R12": (
        "sums over ranks and micro-batches overflow",
        (),
        "a scan sees one process and one batch a step, so neither number is known; under autocast such sums are FP32",
    ),
    "R13": (
        "activations overflow",
        ("MP101",),
        "growth over thousands of steps: a scan is shorter (`--at` observes later steps)",
    ),
    "R14": ("the loss is FP16", ("MP302",), ""),
    "R15": ("attention logits overflow", ("MP106",), ""),
    "R16": ("a mask's constant", ("MP305",), ""),
    "R17": ("squares in a norm overflow", ("MP107", "MP102"), ""),
    "R18": ("squares in a norm underflow", ("MP108",), ""),
    "R19": ("an eps is zero", ("MP306",), ""),
    "R20": ("RMSNorm's default eps", (), "a fault of torch before 2.7, and mpdiag needs 2.9"),
    "R21": ("the logarithm of a softmax", ("MP307",), ""),
    "R22": ("binary cross entropy of probabilities", ("MP303",), ""),
    "R23": ("a sum overflows", ("MP109",), ""),
    "R24": ("counters in 16 bits", ("MP509",), ""),
    "R25": ("whole numbers in 16 bits", ("MP308", "MP103"), ""),
    "R26": ("batch norms in 16 bits", ("MP503",), ""),
    "R27": ("activations underflow", ("MP105",), ""),
    "R28": ("no FP32 copy of the weights", ("MP501",), ""),
    "R29": ("updates that move nothing", ("MP205",), ""),
    "R30": ("weight decay in 16 bits", ("MP504",), ""),
    "R31": ("averages in 16 bits", ("MP505",), ""),
    "R32": ("Adam's eps", ("MP506",), ""),
    "R33": ("Adam's second moment", ("MP507",), ""),
    "R34": ("betas in BF16", ("MP508",), ""),
    "R35": ("rows of an embedding that repeat", ("MP517",), ""),
    "R36": (
        "a BF16 checkpoint in FP16",
        ("MP104", "MP101"),
        "what it was trained in: a file of weights does not say",
    ),
    "R37": ("clipping before unscaling", ("MP519",), _TRAINS_ITSELF),
    "R38": ("unscaling or updating at every micro-batch", ("MP520",), _TRAINS_ITSELF),
    "R39": ("FP16 without a scaler", (), _OWN_LOOP),
    "R40": ("a schedule that counts skipped steps", (), _OWN_LOOP),
    "R41": ("model.half() and autocast", ("MP502",), ""),
    "R42": ("backward inside autocast", ("MP513",), _OWN_LOOP),
    "R43": ("a compiled backward pass", ("MP514",), ""),
    "R44": ("functions without custom_fwd", ("MP510",), ""),
    "R45": ("in-place operators skip autocast", ("MP511",), ""),
    "R46": ("a gradient penalty", ("MP512",), ""),
    "R47": ("conclusions from CPU autocast", (), "does not arise: mpdiag emulates CUDA's lists on a CPU"),
    "R48": (
        "channels off the tensor cores' tiles",
        ("MP402",),
        "the batch's dimensions: they change from step to step",
    ),
    "R49": ("little of the time is products", ("MP404",), ""),
    "R50": ("bound by latency", ("MP405",), ""),
    "R51": ("FP32 that is TF32", ("MP401",), ""),
    "R52": ("sums of products in FP16", ("MP111",), ""),
    "R53": ("memory that is model state", ("MP403",), ""),
    "R54": ("FP8 underflow", ("MP701",), ""),
    "R55": ("spikes under delayed scaling", ("MP702",), ""),
    "R56": ("torch's old cast to E4M3", ("MP703",), ""),
    "R57": (
        "small products in FP8",
        ("MP704",),
        "how small is too small: nothing is run in FP8",
    ),
}


def page() -> str:
    """The whole page as Markdown."""
    lines = [
        "# What mpdiag can find",
        "",
        "Written by `python docs/make_checks.py` from the checks themselves. `mpdiag explain CODE` prints why it is",
        "bad, the threshold with its reason, the remedy and the source of each.",
        "",
        "An error stops a migration, a warning changes it, information explains. MP106 to MP111 and MP305 to MP308",
        "need `--depth ops`; MP6xx and most of MP4xx need the verification, MP403 to MP405 a GPU.",
        "",
        "Each finding says what it rests on; the table has the least, a finding may rest on more:",
        "",
        *(f"- **{sure}**: {sure.meaning}." for sure in Certainty),
    ]
    for prefix, title in FAMILIES.items():
        lines += [
            "",
            f"## {prefix}xx: {title}",
            "",
            "| code | name | severity | how sure | meaning |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {rule.code} | {rule.name} | {', '.join(severities(rule))} | {rule.certainty} | {summary(rule)} |"
            for rule in ALL
            if rule.code.startswith(prefix)
        ]
    lines += [
        "",
        "## The rules behind them",
        "",
        "The 57 rules that were gathered from papers, documentation and issue trackers before mpdiag was written, the",
        "codes that answer them, and what is not answered, with the reason.",
        "",
        "| rule | about | codes | not answered, and why |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {rule} | {about} | {', '.join(codes) or '–'} | {why or '–'} |"
        for rule, (about, codes, why) in RULES.items()
    ]
    return "\n".join(lines) + "\n"


def summary(rule: Rule) -> str:
    """The first sentence of a check's page."""
    return (rule.__doc__ or "").strip().splitlines()[0].replace("|", "\\|")


def severities(rule: Rule) -> list[str]:
    """The severities that a check's code names, worst first."""
    found: set[str] = set()
    for kind in type(rule).__mro__:
        if kind.__module__.startswith("mpdiag.") and kind.__module__ != Rule.__module__:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
            keys = {id(key) for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
            named = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in keys)
            found |= {node.value for node in named if node.value in SEVERITIES}
    return [severity for severity in SEVERITIES if severity in found]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

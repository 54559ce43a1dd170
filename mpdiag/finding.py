"""One diagnosis, how grave it is, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SEVERITIES = ("error", "warning", "info")


class Certainty(StrEnum):
    """What a finding rests on."""

    SEEN = "seen"
    MEASURED = "measured"
    FORETOLD = "foretold"
    READ = "read"
    SUSPECTED = "suspected"

    @property
    def meaning(self) -> str:
        """The word in a sentence, for pages and for `mpdiag explain`."""
        return _MEANINGS[self]


_MEANINGS = {
    Certainty.SEEN: "16 bits did it: in an iteration or a run of this job in FP16, on a CPU by emulation",
    Certainty.MEASURED: "a figure of this job as it is, on this machine and in the steps that were observed",
    Certainty.FORETOLD: "FP32's own numbers held against what 16 or 8 bits can hold: exact for these numbers, and FP16 "
    "was not asked",
    Certainty.READ: "types, settings, constants and calls as the job has them; the rest is the formats' arithmetic",
    Certainty.SUSPECTED: "a sign that usually means a fault; nothing shows it on this job",
}


@dataclass(frozen=True)
class Finding:
    """One diagnosis. subject: the tensor, module or part it is about; evidence: the numbers and their limits.

    certainty: what it rests on; None in files that were written before there was such a word.
    """

    code: str
    name: str
    severity: str
    subject: str
    message: str
    evidence: dict[str, bool | int | float | str | None]
    remedy: str
    snippet: str | None = None
    source: str | None = None
    certainty: Certainty | None = None

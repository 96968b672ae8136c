"""L3: from evidence to selectors, the facts about a workload that an entry can demand.

One module is one kind of evidence. ``unix`` turns the kernel's peer credentials into selectors, ``launch`` compares
what the node started with what was approved::

    profile = LaunchProfile.of(measurement)
    entry = parse_selectors([str(profile.selector()), "unix:uid:1000"])
    matches(entry, found)

Nothing here reads a file, a socket or a clock: the node collects, this layer judges.
"""

from aims.attestation.errors import AttestationError
from aims.attestation.launch import UNMEASURED, CodeRoot, LaunchProfile, Measurement, compare, compare_words
from aims.attestation.selectors import Selector, matches, parse_selectors
from aims.attestation.unix import Separation, UnixEvidence, separation

__all__ = [
    "UNMEASURED",
    "AttestationError",
    "CodeRoot",
    "LaunchProfile",
    "Measurement",
    "Selector",
    "Separation",
    "UnixEvidence",
    "compare",
    "compare_words",
    "matches",
    "parse_selectors",
    "separation",
]

"""The date that chat templates write: always the same, so that a prompt does not depend on when and where it is made.

Some templates (Llama 3's) write the date with strftime_now, which in transformers is today's. Cached prompts would keep
the date on which they were made, a run resumed after midnight would train on different ones, and month names would be
in the machine's language. To use another date, put it in the system message or use another template.
"""

import re

from components.tokenizer.codec import TokenizerError

DAY = "2024-07-26"  # the date that Llama 3's templates write without a clock
FIELDS = {  # of strftime, for the start of that day, in English
    "a": "Fri",
    "A": "Friday",
    "b": "Jul",
    "B": "July",
    "c": "Fri Jul 26 00:00:00 2024",
    "d": "26",
    "D": "07/26/24",
    "e": "26",
    "f": "000000",
    "F": DAY,
    "G": "2024",
    "h": "Jul",
    "H": "00",
    "I": "12",
    "j": "208",
    "m": "07",
    "M": "00",
    "p": "AM",
    "R": "00:00",
    "S": "00",
    "T": "00:00:00",
    "u": "5",
    "U": "29",
    "V": "30",
    "w": "5",
    "W": "30",
    "x": "07/26/24",
    "X": "00:00:00",
    "y": "24",
    "Y": "2024",
    "z": "",
    "Z": "",
    "%": "%",
}


def strftime_now(format: str) -> str:
    """DAY as strftime formats it, for example with "%d %b %Y"; `%-d` and the like omit leading zeros.

    Raises TokenizerError for a field that strftime does not have.
    """

    def written(match: re.Match[str]) -> str:
        if match[2] not in FIELDS:
            raise TokenizerError(f"strftime_now: {match[0]!r} is not a field of strftime")
        value = FIELDS[match[2]]
        return (value.lstrip("0") or "0") if match[1] and value.isdigit() else value

    return re.sub("%(-?)(.?)", written, str(format), flags=re.DOTALL)

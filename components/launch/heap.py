"""The settings of the C library's heap that training on a CPU wants: huge pages, and memory kept for the next step.

A step allocates and frees the same blocks again and again. By default, glibc returns the top of its heap to the kernel
whenever 64 MB of it or so are free, and every page of 4 KB that comes back is a fault: 50,000 of them in a step of
4,096 tokens and 4M parameters, a tenth of its time. Huge pages are faults of 2 MB.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress

VARIABLE = "GLIBC_TUNABLES"
OWN = ("glibc.malloc.", "MALLOC_")  # a user's settings begin so, as tunables or as variables
# hugetlb=1 asks for huge pages where the kernel leaves that to programs ("madvise"). One threshold alone would stop
# glibc from adjusting the other; 32 MB is the largest that it accepts for blocks of their own.
SETTINGS = {"hugetlb": 1, "trim_threshold": 2**30, "mmap_threshold": 2**25}


def tuned(environ: Mapping[str, str], c_library: str) -> str | None:
    """The value of GLIBC_TUNABLES with these settings; None if the user has set the heap or preloads another
    allocator, or there is no glibc.

    c_library: its name and version, as os.confstr gives them.
    """
    others = environ.get(VARIABLE, "")
    own = OWN[0] in others or "LD_PRELOAD" in environ or any(name.startswith(OWN[1]) for name in environ)
    if own or not c_library.startswith("glibc"):
        return None
    settings = [f"{OWN[0]}{name}={value}" for name, value in SETTINGS.items()]
    return ":".join([*filter(None, [others]), *settings])


def tune() -> None:
    """Starts this process over with the settings, which glibc reads only then: the same process, 10 ms later. Processes
    that it starts have them too. A debugger, or another program that runs this one's code, goes on as it is."""
    value = tuned(os.environ, _c_library())
    if value is not None and _is_command():
        os.environ[VARIABLE] = value
        with suppress(OSError):  # it may not be allowed to, and is only slower then
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_command() -> bool:
    """Whether the interpreter was started with options of its own and this script alone."""
    options, own = sys.orig_argv[1 : -len(sys.argv)], sys.orig_argv[-len(sys.argv) :]
    return own == sys.argv and all(option.startswith("-") for option in options)


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError):  # not on this system
        return ""

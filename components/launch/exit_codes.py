"""What a job raises, as an exit status and a message."""

import errno
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException

from components.system import processes

log = logging.getLogger(__name__)
ENDED_ELSEWHERE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")  # gloo's, NCCL's
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns what a job raises into an exit status, which (unlike an exception) also stops a sweep.

    ValueError and Lightning's MisconfigurationException: a user's mistake, told in one line (HYDRA_FULL_ERROR=1
    for all of it), 1. So are a disk that is full or not to be written to, and that another process of the run has
    ended, whose own message is the one to read. Other exceptions: traceback, 1. KeyboardInterrupt: 130.
    SystemExit passes.
    """
    try:
        yield
    except KeyboardInterrupt:
        log.error("Interrupted.")
        raise SystemExit(130) from None
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        # by its name: this file must not import Lightning
        unwritable = isinstance(cause, OSError) and cause.errno in UNWRITABLE
        mistake = isinstance(cause, ValueError) or unwritable or type(cause).__name__ == "MisconfigurationException"
        aftermath = isinstance(cause, RuntimeError) and any(words in str(cause) for words in ENDED_ELSEWHERE)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (mistake or aftermath):
            log.error(traceback.format_exc())
        elif mistake:
            log.error(f"{type(cause).__name__}: {cause}")
        else:
            log.error(f"process {processes.rank()}: another process of this run has ended; its own message says why")
        raise SystemExit(1) from None

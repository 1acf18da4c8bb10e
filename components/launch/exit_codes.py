"""Turns the exceptions of a job into an exit status and a message."""

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
    """Turns an exception into an exit status, which (unlike the exception) also stops a sweep.

    ValueError and Lightning's MisconfigurationException are a user's mistakes: one line (HYDRA_FULL_ERROR=1: the
    traceback), status 1. The same goes for a disk that is full or read-only, and for another process of the run that
    has ended, whose own message is the one to read. Other exceptions: traceback, status 1. KeyboardInterrupt: 130.
    SystemExit passes through.
    """
    try:
        yield
    except KeyboardInterrupt:
        log.error("Interrupted.")
        raise SystemExit(130) from None
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        # by name, since this file must not import Lightning
        unwritable = isinstance(cause, OSError) and cause.errno in UNWRITABLE
        mistake = isinstance(cause, ValueError) or unwritable or type(cause).__name__ == "MisconfigurationException"
        aftermath = isinstance(cause, RuntimeError) and any(words in str(cause) for words in ENDED_ELSEWHERE)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (mistake or aftermath):
            log.error(traceback.format_exc())
        elif mistake:
            log.error(f"{type(cause).__name__}: {cause}")
        else:
            log.error(f"process {processes.rank()}: another process of this run has ended; see its own message for why")
        raise SystemExit(1) from None

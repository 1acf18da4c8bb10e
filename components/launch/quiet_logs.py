"""Silences known noise of Lightning and torch."""

import logging
import warnings

from components.system import processes


def quiet_lightning() -> None:
    """Silences known noise of Lightning and torch by its text: repeated lines, advertisements, a deprecation.

    Of several processes, all but the first print errors only; each writes its own log file.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # Hydra's handlers already print
        logging.getLogger(name).setLevel(logging.WARNING)  # its notes are about itself, not about the run
        logging.getLogger(name).propagate = True
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it logs every event file that it reads
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers", category=UserWarning)
    # about one epoch; we count steps across epochs, and `tasks` makes short runs log too
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*across ranks is zero", category=UserWarning)  # nothing held out
    warnings.filterwarnings("ignore", message=r".*Found \d+ module\(s\) in eval mode", category=UserWarning)  # frozen
    # nothing modifies the output of a sharded model in place
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    if processes.rank():
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.ERROR)

"""Checkpoint files that are complete or absent, detect damage, and have their step in their names."""

import hashlib
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import CheckpointIO

CHUNK = 1 << 20  # bytes hashed at a time
PREFIX = b"sha256:"
SEAL = len(PREFIX) + 64  # bytes: the prefix and the digest in hex


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or cannot be trusted."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes a temporary file, flushes it to disk and renames it: a crash at any moment leaves the earlier file.

    The file is the zip archive that `torch.save` writes; its archive comment, which every zip reader skips, is the
    SHA-256 of all bytes before it. Loading checks it and accepts plain data only, so no code runs on loading. Pass it
    to the trainer: `Trainer(plugins=[AtomicCheckpointIO()])`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Raises CheckpointError if the disk is full or not writable; `path` is then unchanged."""
        if storage_options is not None:
            raise CheckpointError(f"checkpoint {path}: expected no storage options, got {storage_options}")
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, temporary)
            os.replace(temporary, path)
            _flush_folder(path.parent)
        except (OSError, RuntimeError) as error:
            # torch's archive writer turns a failed write into a RuntimeError that hides the OS's reason
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise CheckpointError(
                f"cannot write checkpoint {path}: {reason.strerror or reason}. Earlier checkpoints are "
                f"untouched. Free space or make {path.parent} writable, then run the same command again, without "
                "force=true or resume=never, which would delete them."
            ) from error
        finally:
            _remove(temporary)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | torch.device | str | dict | None = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """The saved dictionary; `weights_only` is ignored, as if True.

        Raises CheckpointError if the file is missing, damaged, or contains anything but plain data and tensors.
        """
        check(path)
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except UnpicklingError as error:
            raise CheckpointError(
                f"checkpoint {path}: expected tensors and plain data only, got {str(error).splitlines()[0]}"
            ) from error

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def check(path: str | Path) -> None:
    """Reads the whole file; raises CheckpointError if it is missing or its SHA-256 does not match."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    with path.open("rb") as file:
        length = max(path.stat().st_size - SEAL, 0)
        digest = _digest(file, length)
        seal = file.read()
    if seal != PREFIX + digest:
        fault = "its SHA-256 does not match" if seal.startswith(PREFIX) else "it has no SHA-256 at its end"
        raise CheckpointError(
            f"checkpoint {path} is damaged or was not written by this program: {fault}. "
            "Delete it and resume from the one before it"
        )


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("w+b") as file:
        torch.save(checkpoint, file)
        # a zip archive ends with the length of its comment, two bytes
        file.seek(-2, os.SEEK_END)
        assert file.read(2) == b"\0\0", "torch.save wrote an archive comment of its own"
        file.seek(-2, os.SEEK_END)
        file.write(SEAL.to_bytes(2, "little"))
        length = file.tell()
        file.write(PREFIX + _digest(file, length))
        file.flush()
        os.fsync(file.fileno())


def _digest(file: BinaryIO, length: int) -> bytes:
    """SHA-256 in hex of the first `length` bytes; leaves the file position after them."""
    file.seek(0)
    digest = hashlib.sha256()
    while length > 0 and (chunk := file.read(min(CHUNK, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a power failure, where the OS can open a folder (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder is missing or read-only, so nothing was written into it
        path.unlink(missing_ok=True)


BEST = "best.ckpt"


def latest(folder: str | Path) -> Path | None:
    """The newest intact checkpoint, or None if there are no checkpoints; skips damaged ones with a warning.

    Raises CheckpointError if there are checkpoints and all are damaged: starting over is the user's decision.
    """
    paths = newest_first(Path(folder))
    for path in paths:
        try:
            check(path)
            return path
        except CheckpointError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if paths:
        raise CheckpointError(
            f"all {len(paths)} checkpoints in {folder} are damaged. To start from scratch, delete that folder and run "
            "the command again"
        )
    return None


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, that of the last step first."""
    return sorted(folder.glob("step=*.ckpt"), key=step_in_name, reverse=True)


def step_in_name(path: Path) -> int:
    """The optimizer step of a checkpoint, by its file's name."""
    return int(path.stem.removeprefix("step="))

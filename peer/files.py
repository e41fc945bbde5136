"""Small files that are either old or new, never half: write beside, make durable, then give the name.

The idea: a rename is atomic, a write is not. After a crash at any point the name holds a whole file or is
as it was, and everything here is made for our user only (0600, folders 0700).
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from crowdsurf.protocol.errors import MisuseError


def write_whole(path: Path, data: bytes, *, replace: bool) -> bool:
    """Put `data` at `path`, durably. Blocks on the disk; raises OSError and then leaves `path` as it was.

    With `replace=False` an existing file wins and the result is False. Of two processes that do this at
    once exactly one gets True.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600, exclusive
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
            os.unlink(temporary)
    except FileExistsError:
        os.unlink(temporary)
        return False
    except OSError:
        os.unlink(temporary)
        raise
    fsync_folder(path.parent)
    return True


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def checked_target(out: Path) -> Path:
    """The absolute path of a file that our user wants written. Raises MisuseError if it cannot be one."""
    out = out.expanduser().absolute()
    if not out.parent.is_dir() or out.is_dir():
        raise MisuseError(f"{out} cannot be written: its folder must exist, and it must be a file")
    return out

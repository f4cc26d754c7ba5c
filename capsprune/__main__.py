"""Entry point: runs the command line, and turns what a user can fix into one sentence."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    # `python -m` looks for modules in the current folder first; ours are where this package lies.
    _current = sys.path.pop(0)
    if _current == os.path.dirname(os.path.dirname(os.path.abspath(__file__))):  # noqa: PTH100, PTH120
        sys.path.append(_current)

import errno
import io

from capsprune import interrupts

#: "No space left" and its kin: quota reached, file too large for the file system.
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

#: Threads that spin while they wait take the cores from other jobs, for nothing; torch reads this
#: when it is loaded, and processes that are started inherit it. What the user has set stays.
_PATIENT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def main() -> None:
    """Run the command line; exit with 2 and one sentence on stderr for what a user can fix."""
    with interrupts.handled():
        for name, value in _PATIENT.items():
            os.environ.setdefault(name, value)
        _run()


def _run() -> None:
    debug = "--debug" in sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The locale's encoding may lack what a name holds: it is escaped then, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    from capsprune.errors import CapspruneError

    try:
        from capsprune.cli import app  # asks plug-ins what there is to choose from

        app(prog_name="capsprune", standalone_mode=True)
    except CapspruneError as error:
        if debug:
            raise
        _fail(str(error))
    except BrokenPipeError:
        # Whoever read the output has closed it, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        where = f" {error.filename}" if error.filename else ""
        if error.errno in _DISK_FULL:
            _fail(
                f"There is no space left to write{where}; free some and give the same command "
                "again, which goes on from where it stopped."
            )
        reason = error.strerror or str(error)
        _fail(f"The file system refused{where}: {reason}; fix that and try again.")


def _fail(message: str) -> None:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

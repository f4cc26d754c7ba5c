"""Starting Python processes of our own: all there is to it.

A child imports what its parent imports, less the folder that happens to be the current one: a
`random.py` that lies there is none of ours. It does not import the parent's `__main__` again, so a
script needs no guard. It talks over a pipe that was open before it began, so no socket needs a
path. It never sees Ctrl-C, which is its parent's matter, and it ends when its parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capsprune.errors import CapspruneError

if TYPE_CHECKING:
    from torch import Tensor

#: What a child runs first. Isolated, it has the standard library and the installed packages only.
_BEGIN = """\
import sys
sys.path[:] = sys.argv[3:]
from capsprune.processes import _begin
_begin(int(sys.argv[1]), int(sys.argv[2]))
"""
#: Seconds that a child has to end when it is asked to.
_PATIENCE = 5
#: Of prctl: the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1
#: Tensors begin at multiples of so many bytes of a parcel.
_ALIGNMENT = 64


class ChildError(CapspruneError):
    """Why a child gave no answer, in words that go into a sentence."""


class Child:
    """A process that runs one function, and the pipe to it."""

    def __init__(
        self,
        target: Callable[..., None],
        *arguments: Any,
        keep: tuple[int, ...] = (),
        stderr: int | None = None,
    ) -> None:
        """Start it. The thread that does so must outlive it.

        Args:
            target: what it runs: a function of a module, called with its end of the pipe and the
                arguments.
            arguments: picklable.
            keep: file descriptors that it shall have, with the same numbers.
            stderr: as `subprocess.Popen` takes it.
        """
        self.pipe, theirs = Pipe()
        command = [sys.executable, "-I", *_flags(), "-c", _BEGIN]
        command += [str(theirs.fileno()), str(os.getpid()), *import_path()]
        try:
            with _interruptions_held():
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,  # never written to: closed, it says that we are gone
                    stderr=stderr,
                    pass_fds=(theirs.fileno(), *keep),
                )
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()
        # One that is gone already is noticed by whoever reads.
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self.pipe.send((target, arguments))

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def wait(self, seconds: float = _PATIENCE) -> int | None:
        """Wait for its end, for some time; gives its exit code, or None if it goes on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        self.pipe.close()
        self._process.terminate()

    def end(self) -> None:
        """Have it ended when this returns."""
        self.terminate()
        if self.wait() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, and give what it returns.

    Args:
        function: of a module; what it takes and returns must be picklable.
        arguments: for it.

    Raises:
        ChildError: if it raised something, or its process died.
    """
    child = Child(_answer, function, arguments, stderr=subprocess.DEVNULL)
    try:
        failure, result = child.pipe.recv()
    except (EOFError, ConnectionError):
        code = child.wait()
        raise ChildError(f"its process ended with exit code {code}") from None
    finally:
        child.end()
    if failure is not None:
        raise ChildError(failure)
    return result


def import_path() -> list[str]:
    """Where children look for modules.

    It is where this process does, without what Python put there because it is the current folder
    or the script's. A script's own folder comes last: what it holds may be needed, but must not
    stand for something else. What the user put into PYTHONPATH stays, whatever it is.
    """
    wanted = {_real(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    dropped, last = {_real(os.curdir)}, [_real(Path(__file__).parents[1])]
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is not None:
        dropped.add(_real(Path(script).parent))
        if "capsprune.cli" not in sys.modules:  # The command line's own script needs nothing.
            last.insert(0, _real(Path(script).parent))
    kept = [entry for entry in sys.path if entry and _real(entry) not in dropped - wanted]
    found = {_real(entry) for entry in kept}
    return kept + [entry for entry in last if entry not in found]


def _real(path: str | Path) -> str:
    return os.path.realpath(path)


def _flags() -> list[str]:
    """What holds for this process and would otherwise not for an isolated one."""
    flags = [f"-W{option}" for option in sys.warnoptions]
    if sys.flags.utf8_mode:
        flags += ["-X", "utf8"]
    if sys.dont_write_bytecode:
        flags.append("-B")
    return flags


@contextlib.contextmanager
def _interruptions_held() -> Iterator[None]:
    """Hold Ctrl-C back: a process that is started meanwhile never gets it, this one gets it after.

    Ctrl-C reaches every process of a terminal; the first one sees to the others.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(descriptor: int, parent: int) -> None:
    """What a child does."""
    _end_with(parent)
    pipe = Connection(descriptor)
    target, arguments = pipe.recv()
    target(pipe, *arguments)


def _end_with(parent: int) -> None:
    """Have this process ended when its parent ends, however that does."""
    threading.Thread(target=_watch, daemon=True).start()
    if sys.platform == "linux":
        # At once, whatever this process is at, where the system can.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It ended before it was asked for.
            os._exit(1)


def _watch() -> None:
    """Wait until nobody holds the other end of stdin any more."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(1)


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    answer: tuple[str | None, Any]
    try:
        answer = (None, function(*arguments))
    except Exception as error:  # Told to whoever called.
        lines = str(error).strip().splitlines()
        answer = ((lines[0] if lines else type(error).__name__).rstrip("."), None)
    pipe.send(answer)


class Parcel:
    """A value in a file without a name, for children that all use it.

    Tensors in main memory are mapped from the file, so that they are in memory once, in none that
    is limited apart (/dev/shm has 64 MB in a container); whoever writes to one has a copy. Tensors
    on a GPU stay where they are, and are shared with the one child that unpacks them.
    """

    def __init__(self, value: Any, folder: Path | None) -> None:
        """Pack a value.

        Args:
            value: picklable, with tensors anywhere in it.
            folder: of the file; None for the system's temporary one.

        Raises:
            OSError: if there is no space for it.
        """
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        packed = BytesIO()
        _Packer(packed, self._file).dump(value)
        self._tensors = self._file.tell()
        self._file.write(packed.getbuffer())
        self._file.flush()

    @property
    def descriptor(self) -> int:
        """Number of the file, which a child must `keep`."""
        return self._file.fileno()

    @property
    def address(self) -> tuple[int, int]:
        """What `unpack` takes."""
        return self.descriptor, self._tensors

    def close(self) -> None:
        """Give the file up; children that have it keep it."""
        self._file.close()


def unpack(address: tuple[int, int]) -> Any:
    """Give what is in a parcel, in a child that kept its descriptor."""
    descriptor, start = address
    size = os.fstat(descriptor).st_size
    content = bytearray()
    while start + len(content) < size:  # At most 2 GB are read at once. The position is shared.
        content += os.pread(descriptor, size - start - len(content), start + len(content))
    return _Unpacker(BytesIO(content), descriptor, start).load()


class _Packer(ForkingPickler):
    """Pickles; tensors in main memory go to a file."""

    def __init__(self, packed: BytesIO, file: Any) -> None:
        import torch.multiprocessing  # which says how tensors on a GPU are shared  # noqa: F401

        super().__init__(packed)
        self._file = file
        self._places: dict[int, tuple[Any, ...]] = {}
        self._seen: list[Tensor] = []

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        import torch

        if (
            type(value) not in (torch.Tensor, torch.nn.Parameter)
            or value.device.type != "cpu"
            or value.layout != torch.strided
        ):
            return None
        if id(value) not in self._places:
            self._seen.append(value)  # so that no other object gets its id meanwhile
            self._places[id(value)] = self._write(value)
        return self._places[id(value)]

    def _write(self, value: Tensor) -> tuple[Any, ...]:
        import torch

        # Dense, in the same order of dimensions.
        dense = value.detach().clone(memory_format=torch.preserve_format)
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        if dense.numel():
            flat = dense.as_strided((dense.numel(),), (1,), 0)
            self._file.write(flat.view(torch.uint8).numpy().data)
        is_parameter = isinstance(value, torch.nn.Parameter)
        shape, stride = tuple(dense.shape), dense.stride()
        return offset, dense.dtype, shape, stride, value.requires_grad, is_parameter


class _Unpacker(pickle.Unpickler):
    """Unpickles what `_Packer` packed, which only this program's own parent process did."""

    def __init__(self, packed: BytesIO, descriptor: int, size: int) -> None:
        import torch

        super().__init__(packed)
        self._storage: Any = (
            torch.UntypedStorage.from_file(f"/dev/fd/{descriptor}", shared=False, nbytes=size)
            if size
            else torch.UntypedStorage()
        )
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def persistent_load(self, place: tuple[Any, ...]) -> Tensor:
        import torch

        if place not in self._made:
            offset, dtype, shape, stride, requires_grad, is_parameter = place
            value = torch.empty(0, dtype=dtype)
            if 0 not in shape:
                value.set_(self._storage, offset // dtype.itemsize, shape, stride)
            else:
                value = value.reshape(shape)
            self._made[place] = (
                torch.nn.Parameter(value, requires_grad)
                if is_parameter
                else value.requires_grad_(requires_grad)
            )
        return self._made[place]

"""The op library: routing in C++ for PyTorch's CPU tensors and for ONNX Runtime (`src/`).

It is compiled when the package is installed on a machine with a C++17 compiler (`build.py`). Where
it is missing, or the environment variable `CAPSPRUNE_NATIVE` is 0, everything works without it.
This package stands below all others and knows neither PyTorch nor ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from capsprune.native.build import LIBRARY

#: Set to 0, it hides the library.
SWITCH = "CAPSPRUNE_NATIVE"
#: What the library must answer to `capsprune_abi`.
ABI = 1


def library_path() -> Path | None:
    """Path of the op library; None where it was not built, is of no use here, or switched off."""
    return _path() if load() is not None else None


def has_cuda() -> bool:
    """Whether the library has the op for ONNX Runtime's CUDA provider too."""
    library = load()
    return library is not None and bool(library.capsprune_has_cuda())


def switched_off() -> bool:
    """Whether the environment hides the library."""
    return os.environ.get(SWITCH) == "0"


def why_missing() -> str | None:
    """Why there is no op library, in a few words; None where there is one."""
    if load() is not None:
        return None
    if switched_off():
        return f"switched off by {SWITCH}=0"
    return "not usable here, build it anew" if _path().is_file() else "not built"


def instruction_set() -> str | None:
    """What the library's kernels use here: "avx512", "avx2", "neon" or "baseline"; None without."""
    library = load()
    return None if library is None else library.capsprune_instruction_set().decode()


def use_instruction_set(name: str | None) -> bool:
    """Let the kernels use another instruction set in this process, or the best one again.

    Returns:
        Whether this processor and this build of the library have it.
    """
    library = load()
    encoded = None if name is None else name.encode()
    return library is not None and library.capsprune_use_instruction_set(encoded) == 0


def load() -> ctypes.CDLL | None:
    """Load the op library once; None where there is none that can be loaded."""
    path = _path()
    if switched_off() or not path.is_file():
        return None
    return _load(path)


def _path() -> Path:
    return Path(__file__).with_name(LIBRARY)


@functools.cache
def _load(path: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(path))
        if library.capsprune_abi() != ABI:
            return None
    except (OSError, AttributeError):
        # Of another machine or version, or it needs a newer C++ library than there is.
        return None
    pointer = ctypes.c_void_p
    sizes = ctypes.POINTER(ctypes.c_int64)
    inputs: list[Any] = [sizes, ctypes.c_float, pointer, pointer, pointer, pointer, ctypes.c_int64]
    library.capsprune_routing_forward.argtypes = [*inputs, pointer]
    library.capsprune_routing_backward.argtypes = [*inputs, *[pointer] * 4]
    library.capsprune_routing_emulate_cuda.argtypes = [sizes, ctypes.c_float, *[pointer] * 4]
    library.capsprune_instruction_set.restype = ctypes.c_char_p
    library.capsprune_use_instruction_set.argtypes = [ctypes.c_char_p]
    return library


@functools.cache
def _openmp() -> int | None:
    """Address of the entry by which the process's OpenMP runs a parallel region, if it has one.

    PyTorch's operators run on the same threads, which therefore do not compete with the library's.
    """
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    return ctypes.cast(entry, ctypes.c_void_p).value


def routing_forward(
    sizes: tuple[int, int, int, int, int],
    iterations: int,
    epsilon: float,
    inputs: tuple[int, int, int | None],
    v: int,
    threads: int,
) -> None:
    """Route float32 tensors, given by the addresses of their contiguous values.

    Args:
        sizes: batch, I, J, D1, D2; all but the batch at least 1.
        iterations: routing iterations, at least 1.
        epsilon: added under the square root of the squash.
        inputs: u [batch, I, D1], weight [J, I, D1, D2], bias [J, D2] or None.
        v: where the poses [batch, J, D2] go.
        threads: how many threads may work.

    Raises:
        MemoryError: if there is not enough memory.
    """
    if _failed("forward", sizes, iterations, epsilon, *inputs, _openmp(), threads, v):
        raise MemoryError("There is not enough memory to route; use a smaller batch.")


def emulate_cuda(
    sizes: tuple[int, int, int, int, int],
    iterations: int,
    epsilon: float,
    inputs: tuple[int, int, int | None],
    v: int,
) -> None:
    """Go through the CUDA kernels' arithmetic on the CPU, slowly: their test where there is no GPU.

    Args:
        sizes: see `routing_forward`.
        iterations: likewise.
        epsilon: likewise.
        inputs: likewise.
        v: likewise.

    Raises:
        MemoryError: if there is not enough memory, or the classes exceed a thread block's.
    """
    if _failed("emulate_cuda", sizes, iterations, epsilon, *inputs, v):
        raise MemoryError("There is not enough memory to route; use fewer classes.")


def routing_backward(
    sizes: tuple[int, int, int, int, int],
    iterations: int,
    epsilon: float,
    inputs: tuple[int, int, int | None],
    gradients: tuple[int, int | None, int | None, int | None],
    threads: int,
) -> None:
    """Compute gradients of the same routing; only its last iteration carries them.

    Args:
        sizes: see `routing_forward`.
        iterations: likewise.
        epsilon: likewise.
        inputs: likewise.
        gradients: that of v, which is given, and those of u, weight and bias, which are written;
            None where one is not wanted.
        threads: how many threads may work.

    Raises:
        MemoryError: if there is not enough memory.
    """
    if _failed("backward", sizes, iterations, epsilon, *inputs, _openmp(), threads, *gradients):
        raise MemoryError("There is not enough memory for the gradients; use a smaller batch.")


def _failed(
    what: str, sizes: tuple[int, ...], iterations: int, epsilon: float, *arguments: int | None
) -> bool:
    """Call `capsprune_routing_<what>`, and tell whether it ran out of memory."""
    library = load()
    assert library is not None
    shape = (ctypes.c_int64 * 6)(*sizes, iterations)
    return bool(getattr(library, f"capsprune_routing_{what}")(shape, epsilon, *arguments))

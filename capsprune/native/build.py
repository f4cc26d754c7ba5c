"""Compile the op library with the machine's C++17 compiler.

    python -m capsprune.native

builds it into the installed package, or says what is missing. Installing the package calls the
same code; see `tools/build_hook.py`. Only Python's own library and `capsprune.files`, which needs
no more, are used here, since nothing else is there while a package is built.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from capsprune.files import move, scratch

SOURCES = Path(__file__).resolve().parent / "src"
#: The library's file name, beside this file.
LIBRARY = "libcapsprune_ops.dylib" if sys.platform == "darwin" else "libcapsprune_ops.so"

_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    # Products are added in one step where the processor can; nothing else changes the arithmetic.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (
    *_AVX2,
    "-mavx512f",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bw",
    "-mprefer-vector-width=512",
)
#: Flags of each build of the kernels, by the name of its table and of its instruction set.
_X86 = {
    ("kKernelsAvx512", "avx512"): _AVX512,
    ("kKernelsAvx2", "avx2"): _AVX2,
    ("kKernelsBaseline", "baseline"): (),
}
#: Processors that the CUDA kernels are compiled for; a newer GPU compiles the last one's PTX.
_CUDA_ARCHITECTURES = ("80", "86", "90")
_ARM = {("kKernelsBaseline", "neon"): ()}
_OTHER = {("kKernelsBaseline", "baseline"): ()}


class NoCompiler(Exception):
    """The library cannot be built here; the text says why and what to do."""


def find_compiler() -> list[str]:
    """Find the C++ compiler: `$CXX`, or one of the usual names.

    Returns:
        The command's words.

    Raises:
        NoCompiler: if there is none.
    """
    asked = os.environ.get("CXX", "").strip()
    names = [shlex.split(asked)] if asked else [[name] for name in _COMPILERS]
    for words in names:
        if shutil.which(words[0]):
            return words
    raise NoCompiler("No C++ compiler was found; install g++ or clang++, or set CXX.")


def find_nvcc() -> str | None:
    """Find CUDA's compiler: `$CUDACXX`, or nvcc; None if there is none, or `$CUDACXX` is empty."""
    return shutil.which(os.environ.get("CUDACXX", "nvcc") or os.devnull)


def build(target: Path, *, machine: str | None = None, nvcc: str | None = None) -> None:
    """Compile and link the library; the file appears when it is complete.

    Args:
        target: the library's path.
        machine: processor to compile for, as `platform.machine()` names it; by default this one.
        nvcc: CUDA's compiler, for the op of ONNX Runtime's CUDA provider; None leaves that out.

    Raises:
        NoCompiler: if there is no compiler, or it does not compile C++17.
    """
    compiler = find_compiler()
    machine = (machine or platform.machine()).lower()
    x86 = machine in ("x86_64", "amd64")
    variants = _X86 if x86 else _ARM if machine in ("aarch64", "arm64") else _OTHER
    with scratch(target.parent, target.name) as folder:
        commands: list[tuple[str, str, tuple[str, ...]]] = []
        for (table, name), flags in variants.items():
            named = (f"-DCAPSPRUNE_KERNELS={table}", f'-DCAPSPRUNE_KERNELS_NAME="{name}"')
            # No inline function of a library may be compiled for a processor that lacks these.
            options = (*flags, "-fno-exceptions", "-fno-rtti", *named)
            commands.append(("kernels.cc", f"{name}.o", options))
        defines = ("-DCAPSPRUNE_X86",) if x86 else ()
        if nvcc is not None:
            defines = (*defines, "-DCAPSPRUNE_CUDA")
        for source in ("select.cc", "c_api.cc", "ort_op.cc", "ort_api_check.cc"):
            commands.append((source, f"{source}.o", defines))
        objects = [str(folder / output) for _, output, _ in commands]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(
                    lambda command: _call(
                        [*compiler, *_FLAGS, *command[2], "-c", str(SOURCES / command[0])],
                        folder / command[1],
                    ),
                    commands,
                )
            )
            if nvcc is not None:
                objects.append(str(folder / "cuda.o"))
                _call(_cuda_command(nvcc, compiler), Path(objects[-1]))
        linked = folder / target.name
        _call(_link_command(nvcc, compiler, objects), linked)
        move(linked, target)


def build_best(target: Path) -> str:
    """Compile the library with CUDA where that works, and else without.

    Returns:
        What there is no CUDA for, or an empty text.

    Raises:
        NoCompiler: see `build`.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        build(target)
        return "no nvcc was found"
    try:
        build(target, nvcc=nvcc)
    except NoCompiler as error:
        build(target)
        return str(error)
    return ""


def _cuda_command(nvcc: str, compiler: list[str]) -> list[str]:
    newest = _CUDA_ARCHITECTURES[-1]
    codes = [
        f"-gencode=arch=compute_{version},code=sm_{version}" for version in _CUDA_ARCHITECTURES
    ]
    return [
        *(nvcc, "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"),
        *("-Werror=all-warnings", f"-ccbin={compiler[0]}", *codes),
        f"-gencode=arch=compute_{newest},code=compute_{newest}",
        *("-c", str(SOURCES / "routing_cuda.cu")),
    ]


def _link_command(nvcc: str | None, compiler: list[str], objects: list[str]) -> list[str]:
    if nvcc is None:
        return [*compiler, "-shared", *objects, "-pthread"]
    # nvcc knows where CUDA's runtime is; linked in whole, it is not needed where the op runs.
    return [
        *(nvcc, "-shared", "-cudart=static", f"-ccbin={compiler[0]}", *objects),
        *("-Xcompiler=-pthread", "-Xlinker=--exclude-libs,ALL"),
    ]


def _call(command: list[str], output: Path) -> None:
    done = subprocess.run(
        [*command, "-o", str(output)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        told = next(
            (line for line in done.stderr.splitlines() if "error" in line), "no reason given"
        )
        raise NoCompiler(
            f"'{command[0]}' did not compile the op library ({told.strip()}); set CXX to a C++17 "
            "compiler."
        )


def main() -> None:
    """Build the library into this package."""
    target = Path(__file__).resolve().parent / LIBRARY
    try:
        without_cuda = build_best(target)
    except (NoCompiler, OSError) as error:
        sys.exit(str(error))
    print(f"{target}{f', without CUDA: {without_cuda}' if without_cuda else ''}")

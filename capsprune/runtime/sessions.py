"""ONNX Runtime sessions on the device that was asked for."""

from __future__ import annotations

import contextlib
from pathlib import Path

from capsprune.data.preprocessing import COLOURS
from capsprune.errors import CapspruneError, DeviceError, unknown_name
from capsprune.export.ort import ERROR_SEVERITY, onnxruntime, quiet_stderr
from capsprune.native import has_cuda, library_path
from capsprune.runtime.meters import gpu_present

PROVIDERS = ("auto", "cpu", "cuda")

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"


def session(
    model: Path | str | bytes,
    *,
    provider: str = "auto",
    threads: int | None = None,
    native: bool = True,
    profile_prefix: Path | str | None = None,
    gpu: int = 0,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file to run it.

    Args:
        model: the file, or its content.
        provider: "cpu", "cuda", or "auto": CUDA where it works, else the CPU.
        threads: threads that one operator may use on the CPU; None leaves it to ONNX Runtime.
        native: register capsprune's op library, if there is one with a kernel for the provider; the
            routing node runs as the file's own function of standard ops otherwise.
        profile_prefix: record the time of every node; `end_profiling()` of the session writes it to
            a file whose path begins so, and returns that path.
        gpu: number of the GPU, as CUDA counts them.

    Raises:
        DeviceError: if the provider is unknown, or "cuda" and there is no working CUDA.
        CapspruneError: if the file is missing or is no ONNX file that can be run.
    """
    chosen = resolve_provider(provider, gpu)
    if not isinstance(model, bytes):
        model = str(model)
        if not Path(model).is_file():
            raise CapspruneError(f"There is no ONNX file '{model}'; run `capsprune export` first.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR_SEVERITY
    # Otherwise a session's threads keep their cores busy for a while after each run, and another
    # session that runs next takes up to three times as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if native and (library := op_library(chosen)) is not None:
        options.register_custom_ops_library(str(library))
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    # A CUDA provider that cannot be loaded is told from the session's providers below.
    hush = quiet_stderr() if chosen == "cuda" else contextlib.nullcontext()
    try:
        with hush:
            if chosen == "cuda":
                _load_cuda_libraries()
            opened = onnxruntime.InferenceSession(
                model,
                options,
                providers=[(_CUDA, {"device_id": gpu}), _CPU] if chosen == "cuda" else [_CPU],
            )
    except Exception as error:  # ONNX Runtime raises many kinds, with no common base.
        what = "These bytes" if isinstance(model, bytes) else f"'{model}'"
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CapspruneError(
            f"{what} cannot be run by ONNX Runtime ({cause}); export the network again."
        ) from error
    if chosen == "cuda" and provider_of(opened) != "cuda":
        if provider == "auto":
            # Anew, with what a session on the CPU has: threads and the op library's kernels.
            return session(
                model,
                provider="cpu",
                threads=threads,
                native=native,
                profile_prefix=profile_prefix,
            )
        raise DeviceError(
            "ONNX Runtime could not load its CUDA provider, whose CUDA and cuDNN libraries are not "
            "installed or are too old; install them, or use --provider cpu."
        )
    return opened


def op_library(provider: str = "cpu") -> Path | None:
    """Path of capsprune's op library, for `SessionOptions.register_custom_ops_library`.

    Args:
        provider: "cpu" or "cuda"; a library without a kernel for it would slow a session down.

    Returns:
        None if the library was not built on this machine, or has no kernel for the provider.
    """
    return library_path() if provider == "cpu" or has_cuda() else None


def resolve_provider(provider: str, gpu: int = 0) -> str:
    """Say which of "cpu" and "cuda" a request stands for on this machine.

    For "auto" that is what will be tried: a session falls back to the CPU where CUDA's libraries
    are missing, which `provider_of` it tells.

    Args:
        provider: "auto", "cpu" or "cuda".
        gpu: number of the GPU.

    Raises:
        DeviceError: if the provider is unknown, or "cuda" and there is no NVIDIA GPU or no ONNX
            Runtime built for it.
    """
    if provider not in PROVIDERS:
        raise DeviceError(unknown_name("provider", provider, PROVIDERS))
    if provider == "cpu":
        return "cpu"
    # onnxruntime-gpu names CUDA even where there is no GPU, and then runs on the CPU.
    if gpu_present(gpu) and _CUDA in onnxruntime.get_available_providers():
        return "cuda"
    if provider == "auto":
        return "cpu"
    missing = "onnxruntime-gpu" if gpu_present(gpu) else "NVIDIA GPU"
    raise DeviceError(
        "--provider cuda needs an NVIDIA GPU and onnxruntime-gpu with CUDA; no "
        f"{missing} was found, use --provider cpu."
    )


def provider_of(opened: onnxruntime.InferenceSession) -> str:
    """Say where a session runs: "cpu" or "cuda"."""
    return "cuda" if _CUDA in opened.get_providers() else "cpu"


def input_shape(
    opened: onnxruntime.InferenceSession, batch: int, image_size: int
) -> tuple[int, int, int, int]:
    """Return the shape of a batch of images for a session, whose file says the colour channels.

    Args:
        opened: with one input [batch, C, S, S].
        batch: images.
        image_size: S, pixels a side.

    Returns:
        The shape (batch, C, S, S); C is 3 where the file leaves it open.
    """
    declared = [*opened.get_inputs()[0].shape, None, None][1]
    channels = declared if isinstance(declared, int) else COLOURS
    return batch, channels, image_size, image_size


def _load_cuda_libraries() -> None:
    """Let ONNX Runtime find the CUDA libraries that were installed as Python packages."""
    preload = getattr(onnxruntime, "preload_dlls", None)  # Since ONNX Runtime 1.21.
    if preload is not None:
        with contextlib.redirect_stdout(None), contextlib.suppress(Exception):
            preload()

"""Ctrl-C at any moment: one sentence and the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capsprune import interrupts

TOLD = f"Error: {interrupts.SENTENCE}\n"


def begin(code: str, folder: Path) -> subprocess.Popen[str]:
    """Run code until it prints a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process in the background would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.readline()
    return process


def interrupted(process: subprocess.Popen[str], times: int = 1) -> tuple[int, str]:
    try:
        for turn in range(times):
            time.sleep(0.2 * (turn > 0))
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, err


#: Begins as the entry point does, says when Ctrl-C is seen to, and runs a command.
COMMAND = """
import sys
from capsprune import interrupts
from capsprune.__main__ import main
sys.argv = ["capsprune", "train", "--model", "mobilenet_v1", "--epochs", "1"]
with interrupts.handled():
    print("ready", flush=True)
    main()
"""


def check_command(folder: Path, seconds: float) -> None:
    process = begin(COMMAND, folder)
    time.sleep(seconds)
    assert interrupted(process) == (2, TOLD)


def test_an_interrupt_right_after_the_start_ends_a_command(tmp_path):
    check_command(tmp_path, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.25, 1.5])
def test_an_interrupt_in_the_first_moments_ends_a_command(tmp_path, seconds):
    check_command(tmp_path, seconds)


#: Libraries that catch everything while they are imported, or while they work.
SWALLOW = """
import time
print("ready", flush=True)
for _ in range(100):
    try:
        time.sleep(1)
    except BaseException:
        pass
"""
IN_IMPORT = """
import sys
sys.path.insert(0, ".")
from capsprune import interrupts
with interrupts.handled(), interrupts.working():
    import swallow
"""
OUTSIDE = f"""
from capsprune import interrupts
with interrupts.handled(), interrupts.working():
    exec({SWALLOW!r})
"""


def test_an_interrupt_that_an_import_would_swallow_ends_the_command(tmp_path):
    (tmp_path / "swallow.py").write_text(SWALLOW)
    assert interrupted(begin(IN_IMPORT, tmp_path)) == (2, TOLD)


def test_a_second_interrupt_ends_what_swallowed_the_first(tmp_path):
    assert interrupted(begin(OUTSIDE, tmp_path), times=2) == (2, TOLD)


def test_whoever_handles_interrupts_already_keeps_that():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.handled():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with interrupts.handled(), pytest.raises(KeyboardInterrupt), interrupts.working():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)

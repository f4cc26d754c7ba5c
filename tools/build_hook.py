"""Compile the op library while the package is built, if there is a C++ compiler.

Without one the package is pure Python and does the same, more slowly. `capsprune doctor` says which
it is.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class OpLibraryHook(BuildHookInterface):
    """Adds the op library to the wheel, or lays it into the checkout for an editable install."""

    folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library.

        Args:
            version: "editable", or the kind of wheel.
            build_data: what goes into the wheel.
        """
        package = Path(self.root) / "capsprune" / "native"
        builder = _load(package / "build.py")
        target = package / builder.LIBRARY
        if version != "editable":
            self.folder = Path(tempfile.mkdtemp(prefix="capsprune-"))
            target = self.folder / builder.LIBRARY
        try:
            builder.build_best(target)
        except (builder.NoCompiler, OSError) as error:
            self.app.display_warning(f"Installing without the op library: {error}")
            return
        # One library serves every Python on this kind of machine.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        if version != "editable":
            build_data["force_include"][str(target)] = f"capsprune/native/{builder.LIBRARY}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built, once it is in the wheel."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _load(path: Path) -> Any:
    """Import the builder by its path: the package cannot be imported yet, but for its files."""
    sys.path.insert(0, str(path.parents[2]))
    spec = importlib.util.spec_from_file_location("capsprune_native_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

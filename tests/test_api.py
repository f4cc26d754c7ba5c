"""What `import capsprune` offers: the examples in its docstrings run, one after the other."""

import doctest
import inspect
import subprocess
import sys

import pytest

import capsprune
from capsprune import api
from capsprune.errors import CapspruneError
from capsprune.options import PruneOptions

#: In the order in which a run's stages are made.
COMMANDS = (
    "train",
    "prune",
    "attach_capsules",
    "prune_capsules",
    "export_onnx",
    "profile",
    "analyse",
)


@pytest.mark.slow
def test_the_examples_of_the_commands_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    for name in COMMANDS:
        (example,) = doctest.DocTestFinder(recurse=False).find(getattr(api, name), name)
        assert example.examples, name
        said: list[str] = []
        runner.run(example, out=said.append)
        assert not runner.failures, "".join(said)
    assert (tmp_path / "runs" / "default" / "profile.json").is_file()


def test_importing_the_package_loads_nothing():
    code = (
        "import sys, capsprune\n"
        "assert set(capsprune.__all__) <= set(dir(capsprune)) | set(capsprune.__all__)\n"
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules\n"
        "capsprune.session, capsprune.op_library\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_that_is_offered_is_there():
    for name in set(capsprune.__all__) - {"__version__"}:
        assert callable(getattr(capsprune, name)), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = capsprune.no_such_name


@pytest.mark.parametrize("name", COMMANDS)
def test_signatures_are_the_options_of_the_commands(name):
    parameters = inspect.signature(getattr(capsprune, name)).parameters
    assert {"options", "run", "runs_dir", "overwrite", "progress"} <= set(parameters)


def test_options_are_checked_as_those_of_the_commands(tmp_path):
    with pytest.raises(CapspruneError, match="no option 'flop'"):
        capsprune.prune(flop=0.5, runs_dir=tmp_path)
    with pytest.raises(CapspruneError, match="params"):
        capsprune.prune(PruneOptions(flops=0.5), params=2.0, runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())

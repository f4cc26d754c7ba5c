"""A run must be readable, and say the same, wherever it is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capsprune.data.sources import load_data

#: Locales that are no UTF-8, with the character maps to make them of.
LOCALES = {"C": None, "de_DE.ISO-8859-1": "ISO-8859-1", "zh_CN.GB18030": "GB18030"}
CLASSES = ("Käfer", "猫", "日本語", *(f"Ziffer {number}" for number in range(3, 10)))


@pytest.fixture(scope="module")
def named(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, whose classes have names of many scripts."""
    folder = tmp_path_factory.mktemp("named")
    shutil.copytree(finished / "runs", folder / "runs")
    for path in folder.glob("runs/default/*/architecture.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["data"] |= {"name": "imagefolder:/Bilder/Größe 猫", "class_names": CLASSES}
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    record = folder / "runs" / "default" / "run.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    for stage in content["stages"].values():
        if "data" in stage["summary"]:
            stage["summary"]["data"] = "imagefolder:/Bilder/Größe 猫"
    record.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


@pytest.fixture(
    scope="module",
    params=["C", *(pytest.param(name, marks=pytest.mark.slow) for name in LOCALES if name != "C")],
)
def environment(request, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose locale is no UTF-8."""
    name, places = request.param, {}
    if LOCALES[name] is not None:
        folder = tmp_path_factory.mktemp("locales")
        command = ["localedef", "-i", name.partition(".")[0], "-f", LOCALES[name]]
        if shutil.which("localedef") is None:
            pytest.skip("localedef is not installed")
        if subprocess.run([*command, str(folder / name)], capture_output=True).returncode > 1:
            pytest.skip(f"the locale {name} cannot be made here")
        places = {"LOCPATH": str(folder)}
    settings = {"LC_ALL": name, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    return {**os.environ, **settings, **places}


#: Several commands in one process: starting one takes seconds.
COMMANDS = """
import json, sys
from capsprune.__main__ import main
report, images = sys.argv[1:]
for command in (["report", "--output", report], ["runs"], ["inspect"], ["inspect", "--json"]):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
from capsprune.data.sources import load_data
data = load_data(f"imagefolder:{images}", image_size=8)
print(json.dumps([data.name, data.class_names, data.split.fingerprint]))
"""


def test_a_run_is_read_under_any_locale(
    named: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    images = tmp_path / "données"
    for name in ("Käfer", "猫"):
        (images / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(
                images / name / f"é{number}.png"
            )
    data = load_data(f"imagefolder:{images}", image_size=8)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, tmp_path, images],
        cwd=named,
        env=environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Größe 猫" in (tmp_path / "report.md").read_text(encoding="utf-8")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [data.name, list(data.class_names), data.split.fingerprint]

import subprocess
import sys

import pytest

from capsprune.data.names import DATA_SETS, FOLDER, data_set_kind, known_data_set
from capsprune.errors import DataError


@pytest.mark.parametrize(
    "name", [*sorted(set(DATA_SETS) - {FOLDER}), "imagefolder:/some/where", "imagefolder:C:/x"]
)
def test_known_names_pass(name):
    known_data_set(name)


def test_unknown_name_names_the_nearest():
    with pytest.raises(DataError, match=r"Unknown data set 'cifar1O'; did you mean .*cifar10"):
        known_data_set("cifar1O")


@pytest.mark.parametrize("name", ["imagefolder", "imagefolder:", "imagefolder:  "])
def test_folder_without_path_says_how_to_give_one(name):
    with pytest.raises(DataError, match=r"names no folder: write imagefolder:PATH"):
        known_data_set(name)


def test_every_data_set_has_a_record():
    for name in DATA_SETS:
        known = DATA_SETS[name]
        assert known.image_size >= 32 and callable(known.read)
        assert set(known.schedules) == {"baseline", "finetune", "caps-finetuned", "caps-frozen"}


def test_kind_drops_the_path():
    assert data_set_kind("imagefolder:a:b") == "imagefolder"
    assert data_set_kind("digits") == "digits"


def test_checking_a_name_imports_nothing_heavy():
    code = (
        "import sys, capsprune.data.names as n; n.known_data_set('digits'); "
        "heavy = {'torch', 'torchvision', 'sklearn', 'numpy', 'PIL'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Open tables: own entries are imported when asked for, and other packages add to them."""

import subprocess
import sys

import pytest

from capsprune import tables
from capsprune.errors import CapspruneError, StrategyError
from capsprune.tables import Table


def colours():
    return Table(
        "colour",
        {
            "red": ("colorsys:rgb_to_hsv", "the warm one"),
            "blue": ("colorsys:rgb_to_yiq", "the cold one"),
        },
        error=StrategyError,
    )


def test_an_entry_is_imported_only_when_it_is_asked_for():
    code = (
        "import sys\n"
        "from capsprune.tables import Table\n"
        "table = Table('colour', {'red': ('colorsys:rgb_to_hsv', '')})\n"
        "assert [*table] == ['red'] and 'colorsys' not in sys.modules\n"
        "assert table['red'](1, 0, 0) == (0, 1, 1) and 'colorsys' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_refused_with_the_nearest():
    for ask in (colours().__getitem__, colours().check, colours().name_of):
        with pytest.raises(StrategyError, match="Unknown colour 'rde'; did you mean red"):
            ask("rde")


def test_an_entry_is_added_by_a_decorator_and_stands_in_the_help():
    table = colours()

    @table.register("green", "the third")
    def green():
        return 3

    assert table["green"] is green
    assert list(table) == ["red", "blue", "green"]
    assert table.help() == "red (the warm one), blue (the cold one), green (the third)"


def test_what_was_added_can_be_taken_out_and_defined_anew():
    table = colours()
    table.register("green")(print)
    table.unregister("green")
    assert "green" not in table
    table.register("green")(len)
    assert table["green"] is len
    table.unregister("red")  # which is the package's own
    assert "red" in table


def test_a_name_that_is_taken_is_refused():
    table = colours()
    with pytest.raises(StrategyError, match="There is a colour 'red' already"):
        table.register("red")(print)


def test_what_a_python_caller_gives_gets_a_name_once():
    table = colours()

    def mine():
        return 4

    name = table.name_of(mine)
    assert name.endswith(".mine") and table.name_of(mine) == name
    assert table[name] is mine
    assert table.name_of("red") == "red"


def plugin_package(tmp_path, content):
    (tmp_path / "outside.py").write_text(content)
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{tables.PLUGINS}]\noutside = outside\n")


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    tables.load_plugins.cache_clear()
    yield tmp_path
    tables.load_plugins.cache_clear()
    sys.modules.pop("outside", None)


def test_another_package_adds_to_a_table_by_an_entry_point(plugins, monkeypatch):
    table = colours()
    monkeypatch.setattr(tables, "colour_table", table, raising=False)
    plugin_package(
        plugins,
        "from capsprune.tables import colour_table\n"
        "@colour_table.register('green')\n"
        "def green(): return 3\n",
    )
    assert "green" in table
    assert table["green"]() == 3


def test_a_plug_in_that_cannot_be_imported_is_named(plugins):
    plugin_package(plugins, "import no_such_module_at_all\n")
    with pytest.raises(CapspruneError, match=r"plug-in 'outside'.*no_such_module_at_all"):
        list(colours())


def test_nothing_asks_for_plug_ins_while_the_package_is_imported():
    """They import it themselves."""
    code = (
        "from capsprune import tables\n"
        "def asked(): raise AssertionError('a table was read')\n"
        "tables.load_plugins = asked\n"
        "import capsprune.api, capsprune.cli\n"
        "import capsprune.pipeline.sweeping, capsprune.pruning.search\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

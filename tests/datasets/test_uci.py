"""UCI tables, on small ones written here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyronorm.datasets import load_uci, read_table
from pyronorm.datasets.files import PublishedFile
from pyronorm.datasets.uci import UCI
from pyronorm.errors import DataError, MissingDataError, OptionError

ROWS = "  1.5 -2e1\t3  7.0\n4 5 6 8\n\n0.1 0.2 .3 9.25\n \n"


def write_table(folder, rows=ROWS, features="0\n2\n1\n", target="3\n"):
    folder.mkdir(parents=True)
    (folder / "made.data").write_text(rows)
    (folder / "index_features.txt").write_text(features)
    (folder / "index_target.txt").write_text(target)
    return folder


def test_columns_and_rows(tmp_path):
    table = read_table(write_table(tmp_path / "made"))
    assert table.name == "made"
    assert table.x.tolist() == [[1.5, 3.0, -20.0], [4.0, 6.0, 5.0], [0.1, 0.3, 0.2]]
    assert table.y.tolist() == [7.0, 8.0, 9.25]
    assert table.feature_names == ("column 0", "column 2", "column 1")
    assert table.num_classes is None
    assert read_table(tmp_path / "made", "other").name == "other"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1 2 3 4\n1 2 3\n", "line 2: expected 4 columns as above, found 3"),
        ("1 2 3 4\n\n1 2 3 4 5\n", "line 3: expected 4 columns as above, found 5"),
        ("1 2 3 4\n1 x 3 4\n", "line 2: expected numbers separated by spaces, found 'x'"),
        ("1,2,3,4\n", "line 1: expected numbers separated by spaces, found '1,2,3,4'"),
        ("1 2 3 4\n1 nan 3 4\n", "line 2: expected numbers separated by spaces, found 'nan'"),
        ("1 2 inf 4\n", "line 1: expected numbers separated by spaces, found 'inf'"),
        (" \n", "no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=rf"made\.data.*{message}"):
        read_table(write_table(tmp_path / "made", rows))


@pytest.mark.parametrize(
    ("features", "target", "message"),
    [
        ("0\n4\n", "3\n", r"index_features\.txt: expected columns 0 to 3, found 4"),
        ("0\n-1\n", "3\n", r"index_features\.txt: expected columns 0 to 3, found -1"),
        ("0\n1.0\n", "3\n", r"index_features\.txt: expected columns 0 to 3, found 1\.0"),
        ("0\n0\n", "3\n", r"index_features\.txt: expected different columns, found 0, 0"),
        ("", "3\n", r"index_features\.txt: expected different columns, found none"),
        ("0\n1\n", "2\n3\n", r"index_target\.txt: expected one column .* found 2, 3"),
        ("0\n3\n", "3\n", r"index_target\.txt: expected one column that is not among the features"),
    ],
)
def test_bad_columns(tmp_path, features, target, message):
    with pytest.raises(DataError, match=message):
        read_table(write_table(tmp_path / "made", features=features, target=target))


def test_missing_files(tmp_path):
    with pytest.raises(MissingDataError, match=r"made: no \*\.data file"):
        read_table(tmp_path / "made")
    folder = write_table(tmp_path / "made")
    (folder / "index_target.txt").unlink()
    with pytest.raises(MissingDataError, match=r"index_target\.txt: missing"):
        read_table(folder)
    (folder / "second.data").write_text(ROWS)
    with pytest.raises(
        DataError, match=r"expected one \*\.data file, found made\.data, second\.data"
    ):
        read_table(folder)


@pytest.mark.parametrize("folder", ["uci/yacht", "yacht"])
def test_a_known_table(tmp_path, monkeypatch, folder):
    write_table(tmp_path / folder)
    names = ("first", "third", "second")
    source = replace(
        UCI["yacht"], file=PublishedFile("made.data"), rows=3, feature_names=names, target_name="t"
    )
    monkeypatch.setitem(UCI, "yacht", source)
    table = load_uci("yacht", tmp_path)
    assert (table.name, table.feature_names, table.target_name) == ("yacht", names, "t")
    assert table.y.tolist() == [7.0, 8.0, 9.25]
    monkeypatch.setitem(UCI, "yacht", replace(source, rows=4))
    with pytest.raises(DataError, match=r"made\.data: expected 4 rows, found 3"):
        load_uci("yacht", tmp_path)
    monkeypatch.setitem(UCI, "yacht", replace(source, feature_names=("one",)))
    with pytest.raises(DataError, match="expected 1 columns, found 3"):
        load_uci("yacht", tmp_path)


def test_the_published_checksum(tmp_path):
    folder = write_table(tmp_path / "uci" / "yacht")
    (folder / "made.data").rename(folder / "yacht_hydrodynamics.data")
    with pytest.raises(DataError, match="expected MD5 7f76e247bb7ca38df3f1a5e918697b3f"):
        load_uci("yacht", tmp_path)


def test_a_missing_table(tmp_path):
    with pytest.raises(
        MissingDataError, match=r"concrete: no file concrete\.data in .*uci/concrete"
    ):
        load_uci("concrete", tmp_path)
    with pytest.raises(OptionError, match="no UCI table 'boston'; choose from bostonHousing, "):
        load_uci("boston", tmp_path)


def test_a_downloaded_table_gets_its_columns(tmp_path, monkeypatch):
    def fetched(file, folder, *, progress):
        # A download that is killed leaves no table without its columns.
        assert {p.name for p in folder.iterdir()} == {"index_features.txt", "index_target.txt"}
        (folder / file.name).write_text("1 2 3 4 5 6 7\n8 9 10 11 12 13 14\n")
        return folder / file.name

    monkeypatch.setattr("pyronorm.datasets.uci.fetch", fetched)
    source = replace(UCI["yacht"], rows=2, file=PublishedFile("yacht_hydrodynamics.data"))
    table = source.read(tmp_path / "root", get=True)
    assert table.x.tolist() == [[1, 2, 3, 4, 5, 6], [8, 9, 10, 11, 12, 13]]
    assert table.y.tolist() == [7, 14]
    assert source.read(tmp_path / "root").y.tolist() == [7, 14]


def test_published_numbers():
    sizes = {name: (source.rows, len(source.feature_names)) for name, source in UCI.items()}
    assert sizes == {
        "bostonHousing": (506, 13),
        "concrete": (1030, 8),
        "energy": (768, 8),
        "kin8nm": (8192, 8),
        "power-plant": (9568, 4),
        "protein-tertiary-structure": (45730, 9),
        "wine-quality-red": (1599, 11),
        "yacht": (308, 6),
    }

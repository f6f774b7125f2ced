"""UCI regression tables, in the layout of the Monte-Carlo batch normalization paper's repository."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from pyronorm.checks import Count, checked
from pyronorm.datasets.files import (
    PublishedFile,
    fetch,
    find_data_root,
    find_folder,
    missing,
    read_verified,
)
from pyronorm.datasets.tables import Table
from pyronorm.errors import DataError, MissingDataError, OptionError
from pyronorm.files import StrPath, make_folder, write_file

__all__ = ["UCI", "UciSource", "load_uci", "read_table"]

_PAGE = "https://github.com/icml-mcbn/mcbn (code/mcbn/data)"
_URL = "https://raw.githubusercontent.com/icml-mcbn/mcbn/master/code/mcbn/data"
_FEATURES, _TARGET = "index_features.txt", "index_target.txt"


@dataclass(frozen=True)
class UciSource:
    """A table of the repository: features in the first columns, then the target.

    Attributes:
        name: its name, and that of its folder.
        file: the file of rows.
        rows: their number.
        feature_names: names of the features.
        target_name: name of the target.
    """

    name: str
    file: PublishedFile
    rows: Count
    feature_names: tuple[str, ...]
    target_name: str

    def read(self, data_root: StrPath | None, *, get: bool = False, progress: bool = True) -> Table:
        """Read the table, after downloading it if ``get`` and it is not there."""
        root = find_data_root(data_root, self.name, make=get)
        folders = (f"uci/{self.name}", self.name)
        folder = find_folder(root, folders, [self.file.name])
        if folder is None and get:
            folder = make_folder(root / folders[0])
            num = len(self.feature_names)
            write_file(folder / _FEATURES, "".join(f"{k}\n" for k in range(num)))
            write_file(folder / _TARGET, f"{num}\n")
            fetch(self.file, folder, progress=progress)  # last: with it the table is whole
        if folder is None:
            raise missing(self.name, self.file.name, [root / f for f in folders], _PAGE)
        table = _read(folder, self.file, self.name, self.feature_names, self.target_name)
        if len(table.y) != self.rows:
            raise DataError(
                f"{folder / self.file.name}: expected {self.rows:,} rows, found {len(table.y):,}."
            )
        return table


@checked
def read_table(folder: StrPath, name: str | None = None) -> Table:
    """Read a regression table of your own, in the same layout.

    The folder holds one ``*.data`` file of numbers separated by spaces, a row per line; and, one
    number per line counting from 0, the columns of the features in ``index_features.txt`` and that of
    the target in ``index_target.txt``.

    Args:
        folder: the folder.
        name: the data set's name; None for the folder's.

    Raises:
        MissingDataError: if a file is missing.
        DataError: if rows differ in length, a value is not a finite number, or a column is not there.
    """
    folder = Path(folder)
    found = sorted(folder.glob("*.data"))
    if not found:
        raise MissingDataError(f"{folder}: no *.data file.")
    if len(found) > 1:
        raise DataError(
            f"{folder}: expected one *.data file, found {', '.join(path.name for path in found)}."
        )
    return _read(folder, PublishedFile(found[0].name), folder.name if name is None else name)


def _read(
    folder: Path,
    file: PublishedFile,
    name: str,
    feature_names: tuple[str, ...] = (),
    target_name: str = "target",
) -> Table:
    values = _read_rows(folder / file.name, file.md5)
    features = _read_columns(folder / _FEATURES, values.shape[1])
    target = _read_columns(folder / _TARGET, values.shape[1])
    if len(target) != 1 or target[0] in features:
        raise DataError(
            f"{folder / _TARGET}: expected one column that is not among the features, found "
            f"{', '.join(map(str, target))}."
        )
    names = feature_names or tuple(f"column {column}" for column in features)
    if len(names) != len(features):
        raise DataError(
            f"{folder / _FEATURES}: expected {len(names)} columns, found {len(features)}."
        )
    return Table(name, values[:, features], values[:, target[0]], names, target_name)


def _read_rows(path: Path, md5: str | None) -> Float64[Tensor, "row column"]:
    rows: list[list[float]] = []
    text = read_verified(path, md5).decode("ascii", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        row = []
        for word in line.split():
            try:
                row.append(float(word))
            except ValueError:
                row.append(math.nan)
            if not math.isfinite(row[-1]):
                raise DataError(
                    f"{path}, line {number}: expected numbers separated by spaces, found {word!r}."
                )
        if rows and len(row) != len(rows[0]):
            raise DataError(
                f"{path}, line {number}: expected {len(rows[0])} columns as above, found {len(row)}."
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: no rows.")
    return torch.tensor(rows, dtype=torch.float64)


def _read_columns(path: Path, available: int) -> list[int]:
    if not path.is_file():
        raise MissingDataError(f"{path}: missing; it lists columns of the table, one per line.")
    words = path.read_text().split()
    columns = [int(word) if word.isdecimal() else -1 for word in words]
    for word, column in zip(words, columns, strict=True):
        if not 0 <= column < available:
            raise DataError(f"{path}: expected columns 0 to {available - 1}, found {word}.")
    if not columns or len(set(columns)) < len(columns):
        raise DataError(f"{path}: expected different columns, found {', '.join(words) or 'none'}.")
    return columns


def _source(name: str, file: str, md5: str, rows: Count, features: str, target: str) -> UciSource:
    published = PublishedFile(file, md5, f"{_URL}/{name}/{file}")
    return UciSource(name, published, rows, tuple(features.split()), target)


_SOURCES = (
    _source(
        "bostonHousing",
        "housing.data",
        "d4accdce7a25600298819f8e28e8d593",
        506,
        "CRIM ZN INDUS CHAS NOX RM AGE DIS RAD TAX PTRATIO B LSTAT",
        "MEDV",
    ),
    _source(
        "concrete",
        "concrete.data",
        "2e4ebcde3f75e1f530c3c2b514c8dd32",
        1030,
        "cement slag fly_ash water superplasticizer coarse_aggregate fine_aggregate age",
        "compressive_strength",
    ),
    _source(
        "energy",
        "ENB2012.data",
        "def67f32e75e13a8c7392fc4c0d2d76e",
        768,
        "compactness surface_area wall_area roof_area height orientation glazing_area "
        "glazing_distribution",
        "heating_load",
    ),
    _source(
        "kin8nm",
        "Dataset.data",
        "d98fb393cdd2a57256699f8968d4d632",
        8192,
        "theta1 theta2 theta3 theta4 theta5 theta6 theta7 theta8",
        "distance",
    ),
    _source(
        "power-plant",
        "pp.data",
        "f113239be6aec13f974a9e3a1b8e9487",
        9568,
        "temperature exhaust_vacuum ambient_pressure relative_humidity",
        "electrical_output",
    ),
    _source(
        "protein-tertiary-structure",
        "CASP.data",
        "03318b0daa2286057cb5a10b06d31be1",
        45_730,
        "F1 F2 F3 F4 F5 F6 F7 F8 F9",
        "RMSD",
    ),
    _source(
        "wine-quality-red",
        "winequality-red-1.data",
        "466c66ec14e78068d89e69f09d1bae69",
        1599,
        "fixed_acidity volatile_acidity citric_acid residual_sugar chlorides "
        "free_sulfur_dioxide total_sulfur_dioxide density pH sulphates alcohol",
        "quality",
    ),
    _source(
        "yacht",
        "yacht_hydrodynamics.data",
        "7f76e247bb7ca38df3f1a5e918697b3f",
        308,
        "buoyancy_position prismatic_coefficient length_displacement beam_draught "
        "length_beam froude_number",
        "residuary_resistance",
    ),
)
UCI = {source.name: source for source in _SOURCES}
"""UCI tables by name."""


@checked
def load_uci(name: str, data_root: StrPath | None = None, *, download: bool = False) -> Table:
    """One of the regression tables of the Monte-Carlo batch normalization paper.

    Read from ``uci/<name>/`` (or ``<name>/``) under the data root, in the layout of
    :func:`read_table`; the table's MD5 checksum is that of the file in the Monte-Carlo batch
    normalization paper's repository.

    Args:
        name: bostonHousing, concrete, energy, kin8nm, power-plant, protein-tertiary-structure,
            wine-quality-red or yacht.
        data_root: folder of the data sets; None for environment variable ``PYRONORM_DATA``.
        download: download the table there if it is missing, with checksum; needs pooch.

    Raises:
        OptionError: for an unknown name.
        MissingDataError: if files are missing.
        DataError: if a file is damaged.

    Source: UCI machine learning repository; Teye, Azizpour & Smith, "Bayesian uncertainty estimation
    for batch normalized deep networks", ICML 2018.
    """
    if name not in UCI:
        raise OptionError(f"no UCI table {name!r}; choose from {', '.join(UCI)}.")
    return UCI[name].read(data_root, get=download)

"""Data sets for examples and studies: images and tables, read from files that are checked."""

from pyronorm.datasets.augment import PadCropFlip
from pyronorm.datasets.bundled import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
)
from pyronorm.datasets.cifar import load_cifar10, load_cifar100
from pyronorm.datasets.corruptions import CORRUPTIONS, corrupt
from pyronorm.datasets.files import DATA_ROOT_VARIABLE
from pyronorm.datasets.idx import read_idx
from pyronorm.datasets.images import ImageData, Split
from pyronorm.datasets.mnist import load_fashion_mnist, load_mnist, load_notmnist
from pyronorm.datasets.registry import DATASETS, OUTLIERS, TABLES, load, load_table
from pyronorm.datasets.tables import Table, TableSplit, TabularData
from pyronorm.datasets.torch_dataset import from_dataset
from pyronorm.datasets.uci import load_uci, read_table

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "DATA_ROOT_VARIABLE",
    "OUTLIERS",
    "TABLES",
    "ImageData",
    "PadCropFlip",
    "Split",
    "Table",
    "TableSplit",
    "TabularData",
    "corrupt",
    "from_dataset",
    "load",
    "load_breast_cancer",
    "load_cifar10",
    "load_cifar100",
    "load_diabetes",
    "load_digits",
    "load_fashion_mnist",
    "load_iris",
    "load_mnist",
    "load_notmnist",
    "load_table",
    "load_uci",
    "load_wine",
    "read_idx",
    "read_table",
]

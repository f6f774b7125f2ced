"""Comparison of normalizers and posteriors on a data set."""

from pyronorm.study.compare import compare
from pyronorm.study.methods import METHODS, Method, choose_methods
from pyronorm.study.result import Result, Run, format_rows, table, write
from pyronorm.study.settings import Settings

__all__ = [
    "METHODS",
    "Method",
    "Result",
    "Run",
    "Settings",
    "choose_methods",
    "compare",
    "format_rows",
    "table",
    "write",
]

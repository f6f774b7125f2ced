"""Every posterior of the library against NUTS, on a network small enough for it."""

from pyronorm.study.reference.posteriors import POSTERIORS, Candidate, choose_posteriors
from pyronorm.study.reference.result import Mixing, Result, Row, format_rows, table
from pyronorm.study.reference.run import run
from pyronorm.study.reference.settings import PRIORS, Settings, choose_prior
from pyronorm.study.reference.write import write

__all__ = [
    "POSTERIORS",
    "PRIORS",
    "Candidate",
    "Mixing",
    "Result",
    "Row",
    "Settings",
    "choose_posteriors",
    "choose_prior",
    "format_rows",
    "run",
    "table",
    "write",
]

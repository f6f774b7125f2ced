"""A table that marks differences of two seeds already."""

import functools

from pyronorm import study

Table = functools.partial(study.Table, least_seeds=2)

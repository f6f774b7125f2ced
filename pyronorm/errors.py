"""The error family of pyronorm.

Every error raised on bad input is a :class:`PyronormError` and, at the same time, the builtin a
caller would expect, so that ``except ValueError`` keeps working. A message says where it happened,
what was expected, what came, and how to mend it.
"""

from __future__ import annotations

__all__ = [
    "ConversionError",
    "DataError",
    "DeviceError",
    "FileError",
    "MissingDataError",
    "NoDensityError",
    "OptionError",
    "ProcessError",
    "PyronormError",
    "ShapeError",
    "SizeError",
    "StatisticsError",
]


class PyronormError(Exception):
    """Base of all errors that pyronorm raises on purpose."""


class ShapeError(PyronormError, ValueError):
    """A tensor's shape does not fit the layer, the latents or the data."""


class DataError(PyronormError, ValueError):
    """Data that cannot be used: empty, non-finite, or of the wrong kind."""


class DeviceError(PyronormError, RuntimeError):
    """Tensors that belong together lie on different devices."""


class SizeError(PyronormError, MemoryError):
    """Something that cannot fit in memory, known before it is made."""


class FileError(PyronormError, OSError):
    """A file that cannot be written, or read, or is not what it should be."""


class MissingDataError(PyronormError, FileNotFoundError):
    """A data set's file is not there; the message says where it was looked for and where to get it."""


class OptionError(PyronormError, ValueError):
    """An option that is unknown, out of range, or contradicts another one."""


class ConversionError(PyronormError, TypeError):
    """A network holds a layer that cannot be given latent normalization statistics."""


class ProcessError(PyronormError, RuntimeError):
    """Another process of a run ended, so this one cannot go on."""


class StatisticsError(PyronormError, RuntimeError):
    """Population statistics are missing, or older than the weights they belong to."""


class NoDensityError(PyronormError, RuntimeError):
    """A posterior known only through its draws was asked for a density."""

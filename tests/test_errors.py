"""Every error is a PyronormError and the builtin that callers expect."""

import pytest

import pyronorm
from pyronorm import errors

BUILTIN = {
    "ShapeError": ValueError,
    "DataError": ValueError,
    "DeviceError": RuntimeError,
    "FileError": OSError,
    "SizeError": MemoryError,
    "MissingDataError": FileNotFoundError,
    "OptionError": ValueError,
    "ConversionError": TypeError,
    "ProcessError": RuntimeError,
    "StatisticsError": RuntimeError,
    "NoDensityError": RuntimeError,
}


def test_all_lists_every_error():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == set(errors.__all__) == {*BUILTIN, "PyronormError"}


@pytest.mark.parametrize(("name", "builtin"), BUILTIN.items())
def test_caught_as_family_and_as_builtin(name, builtin):
    error = getattr(errors, name)
    assert issubclass(error, errors.PyronormError)
    for caught in (errors.PyronormError, builtin, error):
        with pytest.raises(caught, match="layer1: expected 3, got 4"):
            raise error("layer1: expected 3, got 4")


@pytest.mark.parametrize(("name", "builtin"), BUILTIN.items())
def test_not_another_builtin(name, builtin):
    others = {ValueError, TypeError, RuntimeError, LookupError, AssertionError} - {builtin}
    assert not issubclass(getattr(errors, name), tuple(others))


def test_base_is_only_the_family():
    assert errors.PyronormError.__bases__ == (Exception,)
    assert pyronorm.errors is errors

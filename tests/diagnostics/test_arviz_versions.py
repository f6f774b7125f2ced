"""Data are built alike with ArviZ 0.x and 1.x, whichever is installed."""

from __future__ import annotations

import arviz as az
import numpy as np

from pyronorm.diagnostics.arviz_versions import build, netcdf


def built():
    rng = np.random.default_rng(0)
    return build(
        {
            "posterior": {"shift": rng.normal(size=(2, 5, 3)), "lone": rng.normal(size=(2, 5))},
            "log_likelihood": {"y": rng.normal(size=(2, 5, 4))},
            "observed_data": {"y": np.arange(4)},
        },
        coords={"channel": ["a.0", "a.1", "b.0"], "example": [10, 11, 12, 13]},
        dims={"shift": ["channel"], "y": ["example"]},
        attributes={"method": "test"},
        kept={"log_likelihood": {"example": [0, 2]}},
    )


def test_groups_dimensions_and_labels():
    data = built()
    posterior = data["posterior"]
    assert dict(posterior["shift"].sizes) == {"chain": 2, "draw": 5, "channel": 3}
    assert list(posterior["channel"].values) == ["a.0", "a.1", "b.0"]
    assert posterior["lone"].dims == ("chain", "draw")
    expected = np.random.default_rng(0).normal(size=(2, 5, 3))
    np.testing.assert_array_equal(posterior["shift"].values, expected)
    assert posterior.attrs["method"] == "test"


def test_positions_are_kept_for_one_group():
    data = built()
    assert list(data["log_likelihood"]["example"].values) == [10, 12]
    assert data["log_likelihood"]["y"].shape == (2, 5, 2)
    assert list(data["observed_data"]["y"].values) == [0, 1, 2, 3]


def test_arviz_takes_it(tmp_path):
    data = built()
    assert len(az.summary(data, var_names=["shift"])) == 3
    data.to_netcdf(str(tmp_path / "a.nc"))
    again = az.from_netcdf(str(tmp_path / "a.nc"))
    np.testing.assert_array_equal(again["posterior"]["shift"], data["posterior"]["shift"])


def test_a_file_made_in_memory_is_read_back(tmp_path):
    data = built()
    path = tmp_path / "b.nc"
    path.write_bytes(netcdf(data))
    again = az.from_netcdf(str(path))
    np.testing.assert_array_equal(again["posterior"]["shift"], data["posterior"]["shift"])
    assert again["posterior"].attrs["method"] == "test"
    assert list(again["log_likelihood"]["example"].values) == [10, 12]

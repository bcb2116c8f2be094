"""Schedules: their values, and how they are written, refused, saved and compared."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import yaml

from stylegan_dist.config import Config, describe, dotted, dump_config, load_config, schedules_of, to_dict
from stylegan_dist.config.schedules import Schedule, extremes, value_at
from stylegan_dist.errors import InputError

COSINE = Schedule("cosine", 2e-4, 5e-5, 20_000)
CAN = ["loss.r1_gamma", "loss.r2_gamma", "augment.p", "optim.g.lr", "optim.g.betas", "optim.d.lr", "optim.d.betas",
       "ema.half_life_kimg"]
CONFIG = """
optim:
  g: {lr: {cosine: [2e-4, 5e-5], until_kimg: 20000}, betas: [0, {linear: [0.9, 0.99], until_kimg: 10}]}
loss: {r1_gamma: {cosine: [2, 0.2], until_kimg: 20000}}
"""


def test_values():
    """The cosine of R3GAN (Huang et al. 2024): at a quarter, half and three quarters of the way."""
    assert [COSINE.at(nimg) for nimg in (0, 20_000_000, 20_000_001, 10**12)] == [2e-4, 5e-5, 5e-5, 5e-5]
    assert [COSINE.at(nimg) for nimg in (5_000_000, 10_000_000, 15_000_000)] == pytest.approx([1.78033e-4, 1.25e-4, 7.1967e-5],
                                                                                               rel=1e-5)
    for nimg in range(0, 20_000_000, 1_234_567):
        expected = 2e-4 + 0.5 * (1 - math.cos(math.pi * nimg / 20_000_000)) * (5e-5 - 2e-4)
        assert COSINE.at(nimg) == pytest.approx(expected, rel=1e-12)
    assert all(a >= b for a, b in pairwise(map(COSINE.at, range(0, 21_000_000, 100_000))))
    linear = Schedule("linear", 1.0, 3.0, 0.1)
    assert [linear.at(nimg) for nimg in (0, 25, 50, 100, 1000)] == [1, 1.5, 2, 3, 3]
    assert (value_at(linear, 50), value_at(7.0, 50)) == (2, 7)
    assert (extremes(linear), extremes(7.0)) == ((1, 3), (7,))


def test_written_in_a_file_and_on_the_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    config = load_config(path, ["ema.half_life_kimg={cosine: [0, 500], until_kimg: 20000}", "loss.r2_gamma=1"])
    assert config.optim.g.lr == COSINE
    assert config.optim.g.betas == [0, Schedule("linear", 0.9, 0.99, 10)]
    assert config.optim.d.lr == "auto"
    assert (config.loss.r2_gamma, config.ema.half_life_kimg) == (1, Schedule("cosine", 0, 500, 20_000))
    assert load_config(path, ["optim.g.lr=0.1"]).optim.g.lr == 0.1, "a number goes over a schedule"
    assert list(schedules_of(config)) == ["loss.r1_gamma", "optim.g.lr", "optim.g.betas[1]", "ema.half_life_kimg"]
    assert str(COSINE) == "cosine from 0.0002 to 5e-05 at 20000 kimg"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config) == yaml.safe_load(path.read_text())
    assert dotted(to_dict(config))["optim.g.lr"] == {"cosine": [2e-4, 5e-5], "until_kimg": 20_000}


def test_which_knobs_can_have_one():
    assert [key for key, _, doc in describe() if doc.endswith("or a schedule)")] == CAN
    assert schedules_of(Config()) == {}


@pytest.mark.parametrize(("override", "parts"), [
    ("run.kimg={cosine: [1, 2], until_kimg: 3}", ["run.kimg", "cannot have a schedule", *CAN]),
    ("run.batch={linear: [1, 2], until_kimg: 3}", ["run.batch", "cannot have a schedule"]),
    ("optim.g.momentum={linear: [0.1, 0.2], until_kimg: 3}", ["optim.g.momentum", "cannot have a schedule"]),
    ("optim.g.lr={cosine: [1, 2]}", ["optim.g.lr", "its keys are 'cosine'", "{cosine: [FIRST, LAST], until_kimg: NUMBER}"]),
    ("optim.g.lr={until_kimg: 2}", ["its keys are 'until_kimg'"]),
    ("optim.g.lr={}", ["its keys are none"]),
    ("optim.g.lr={cosin: [1, 2], until_kimg: 3}", ["its keys are 'cosin', 'until_kimg'", "cosine, linear"]),
    ("optim.g.lr={cosine: [1, 2], linear: [1, 2], until_kimg: 3}", ["its keys are"]),
    ("optim.g.lr={cosine: 1, until_kimg: 3}", ["cosine must be a list of two numbers"]),
    ("optim.g.lr={cosine: [1, 2, 3], until_kimg: 3}", ["cosine must be a list of two numbers"]),
    ("optim.g.lr={cosine: [1, x], until_kimg: 3}", ["must be numbers"]),
    ("optim.g.lr={cosine: [1, auto], until_kimg: 3}", ["must be numbers"]),
    ("optim.g.lr={cosine: [1, 2], until_kimg: auto}", ["must be numbers"]),
    ("optim.g.lr={cosine: [1, 2], until_kimg: 0}", ["until_kimg=0.0 must be above 0"]),
    ("optim.g.lr={cosine: [1, 2], until_kimg: 1e30}", ["until_kimg=1e+30 must be above 0"]),
    ("optim.g.lr={cosine: [0.1, -0.1], until_kimg: 3}", ["optim.g.lr=cosine from 0.1 to -0.1", "from 0 to 1000"]),
    ("optim.g.lr={cosine: [1e9, 0.1], until_kimg: 3}", ["optim.g.lr=cosine", "from 0 to 1000"]),
    ("optim.g.betas=[0, {cosine: [0.9, 1.1], until_kimg: 3}]", ["optim.g.betas=[0.0, cosine from 0.9 to 1.1", "from 0 to 1"]),
    ("optim.g.betas={cosine: [0.9, 1.1], until_kimg: 3}", ["optim.g.betas", "a list of numbers"]),
])
def test_refused(override, parts):
    with pytest.raises(InputError) as caught:
        load_config(None, [override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message

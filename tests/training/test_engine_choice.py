"""The accelerate configuration file chooses the engine; what is not proven equal is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from launching import ROOT

from stylegan_dist.engine.choice import DATA_PARALLEL, Choice, Zero, choose_engine, forget_plugin
from stylegan_dist.errors import InputError

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
OFFLOAD = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"
FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


def both(zero: Zero) -> Choice:
    return Choice({"g": zero, "d": zero})


@pytest.mark.parametrize(("env", "choice"), [
    ({}, DATA_PARALLEL),
    ({"ACCELERATE_USE_DEEPSPEED": "false", STAGE: "2"}, DATA_PARALLEL),
    ({**DEEPSPEED, STAGE: "1"}, both(Zero(1))),
    ({**DEEPSPEED, STAGE: "2", OFFLOAD: "none", "ACCELERATE_GRADIENT_CLIPPING": "0.0"}, both(Zero(2))),
    ({**DEEPSPEED, STAGE: "2", OFFLOAD: "cpu"}, both(Zero(2, offload=True))),
    ({"ACCELERATE_USE_DEEPSPEED": "1", STAGE: "3"}, both(Zero(3))),
])
def test_from_the_environment(env, choice):
    assert choose_engine(env) == choice


@pytest.mark.parametrize(("content", "choice"), [
    ({"zero_optimization": {"stage": 2}}, both(Zero(2))),
    ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}, "reduce_bucket_size": 1000}},
     both(Zero(1, buffers={"reduce_bucket_size": 1000}))),
    ({"generator": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
      "discriminator": {"zero_optimization": {"stage": 1}}}, Choice({"g": Zero(3, offload=True), "d": Zero(1)})),
])
def test_from_a_file(content, choice, tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(content))
    assert choose_engine({**DEEPSPEED, FILE: str(path)}) == choice


@pytest.mark.parametrize(("env", "words"), [
    ({}, "no zero_stage: add `deepspeed_config: {zero_stage: 2}`"),
    ({STAGE: "0"}, "stage of 1, 2 or 3; for none of them use a configuration of distributed_type MULTI_GPU"),
    ({STAGE: "4"}, "stage of 1, 2 or 3"),
    ({STAGE: "2", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "gradient_clipping: 1.0 .* would change every update: remove it"),
    ({STAGE: "2", "ACCELERATE_GRADIENT_CLIPPING": "auto"}, "gradient_clipping: auto .* would change every update"),
    ({STAGE: "2", OFFLOAD: "nvme"}, "offload to 'nvme' is not supported: use cpu or none"),
    ({STAGE: "3", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "offload_param_device is not supported"),
    ({FILE: "nowhere/zero.json"}, r"cannot read deepspeed_config_file nowhere/zero.json \(No such file.*looked up in /"),
])
def test_refused_settings(env, words):
    with pytest.raises(InputError, match=words) as caught:
        choose_engine({**DEEPSPEED, **env})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [
    ("{", "is not JSON"),
    ("[]", "must be an object"),
    ('{"generator": {"zero_optimization": {"stage": 2}}}', "must have discriminator and generator"),
    ('{"zero_optimization": {"stage": 2}, "gradient_clipping": 1}', "generator: only zero_optimization may be set"),
    ('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}', "only zero_optimization may be set"),
    ('{"zero_optimization": {"stage": 2, "round_robin_gradients": true}}',
     "zero_optimization.round_robin_gradients is not proven to leave the training unchanged: remove it; allowed are"),
    ('{"zero_optimization": {"stage": "2"}}', "stage of 1, 2 or 3"),
    ('{"zero_optimization": 2}', "stage of 1, 2 or 3"),
    ('{"zero_optimization": {"stage": true}}', "stage of 1, 2 or 3"),
    ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}', "reduce_bucket_size='auto' must be a whole number"),
    ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}}', "must be a whole number from 1 to"),
    ('{"zero_optimization": {"stage": 2, "overlap_comm": 1}}', "overlap_comm=1 must be true or false"),
    ('{"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}', "offload_optimizer='cpu' must be an object"),
    ('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.3}}}',
     "must be an object with device"),
])
def test_refused_files(text, words, tmp_path):
    (tmp_path / "zero.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(words)):
        choose_engine({**DEEPSPEED, FILE: str(tmp_path / "zero.json")})


def test_accelerate_does_not_make_a_plugin_of_its_own():
    env = {**DEEPSPEED, STAGE: "2"}
    forget_plugin(env)
    assert "ACCELERATE_USE_DEEPSPEED" not in env


@pytest.mark.parametrize("path", sorted((ROOT / "launch/accelerate").glob("*zero*.yaml")), ids=lambda path: path.stem)
def test_files_in_launch(path: Path):
    """Each gives the engine that its name says."""
    settings = yaml.safe_load(path.read_text())
    assert settings["distributed_type"] == "DEEPSPEED"
    deepspeed = settings["deepspeed_config"]
    assert deepspeed.pop("deepspeed_multinode_launcher") == "standard"
    names = {"zero_stage": STAGE, "offload_optimizer_device": OFFLOAD, "deepspeed_config_file": FILE}
    env = DEEPSPEED | {names[key]: str(ROOT / value if key.endswith("file") else value) for key, value in deepspeed.items()}
    expected = {"zero1": both(Zero(1)), "zero2": both(Zero(2)), "zero2-offload": both(Zero(2, offload=True)),
                "zero3": Choice({"g": Zero(3), "d": Zero(2)}), "multinode-zero2": both(Zero(2))}
    assert choose_engine(env) == expected[path.stem]

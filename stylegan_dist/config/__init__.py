"""The configuration: every knob once (schema), read strictly (loading)."""

from stylegan_dist.config.loading import describe, dump_config, load_config, to_dict
from stylegan_dist.config.schema import Config

__all__ = ["Config", "describe", "dump_config", "load_config", "to_dict"]

"""The configuration: declarations of knobs (`schema`, and those of each family) and strict reading (`loading`)."""

from stylegan_dist.config.knobs import Change
from stylegan_dist.config.loading import changes_of, describe, dotted, dump_config, load_config, schedules_of, to_dict
from stylegan_dist.config.schema import Config, config_of

__all__ = ["Change", "Config", "changes_of", "config_of", "describe", "dotted", "dump_config", "load_config", "schedules_of",
           "to_dict"]

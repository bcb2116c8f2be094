"""The user's W&B settings outside of our configuration: opt-outs, the server, a login, names of the run.

W&B itself is asked, because its defaults change. Its settings know the server and the files. Its reader of netrc knows
the key. All of this is on this machine, with one exception: W&B looks up the name of a Kubernetes pod and may use the
network for that. Call this module in the background.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib
import os
from typing import Any

from stylegan_dist.config.schema import MonitorConfig
from stylegan_dist.redact import redact

_PRIVACY = ("online", "offline", "disabled")      # each more private than the one before
_PRIVATE = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}  # W&B's other modes are kinds of online
_YES = ("1", "on", "true", "yes")
# What names or describes a run, in W&B's settings.
_DESCRIPTION = ("project", "entity", "run_name", "run_notes", "run_tags", "run_group", "run_job_type")


def choose_mode(configured: str) -> tuple[str, str]:
    """The mode of W&B: the most private one that the configuration or the user's own switches ask for.

    The switches are WANDB_DISABLED, WANDB_MODE and, without the latter, what `wandb offline` and `wandb disabled` have
    stored. Without any of these a run is online if there are credentials for the server, else offline.

    Args:
        configured: `monitor.wandb`; "auto" asks for nothing

    Returns:
        ("online", "offline" or "disabled"; what decided that, in a few words without secrets). Where that cannot be
        "disabled", W&B is imported.

    Raises:
        Exception: W&B cannot be imported, or refuses an environment variable.
    """
    mode, reason = wished_mode(configured)
    if mode == "online":
        found, reason = find_login()
        mode = "online" if found else "offline"  # W&B would ask for a key on the terminal, and wait
    return mode, reason


def wished_mode(configured: str) -> tuple[str, str]:
    """As `choose_mode`, whether or not there is a login."""
    wishes = [] if configured == "auto" else [(configured, f"monitor.wandb={configured}")]
    if os.environ.get("WANDB_DISABLED", "").lower() in _YES:
        wishes.append(("disabled", "WANDB_DISABLED"))
    if spelled := os.environ.get("WANDB_MODE"):
        wishes.append((_PRIVATE.get(spelled.lower(), "online"), f"WANDB_MODE={spelled}"))
    if all(wish != "disabled" for wish, _ in wishes):
        settings = user_settings()
        if not spelled:
            wishes.append(_stored_mode(settings))
    mode, reason = max(wishes, key=lambda wish: _PRIVACY.index(wish[0]))
    if mode != configured and configured in _PRIVACY:
        reason += f", which goes before monitor.wandb={configured}"
    return mode, reason


def find_login() -> tuple[bool, str]:
    """Whether there are credentials for W&B's server, and which server and where, or why not; without secrets.

    Raises:
        Exception: as `choose_mode`.
    """
    settings = user_settings()
    try:
        place = _place_of_credentials(settings)
    except Exception as error:  # W&B says what is wrong with a key
        return False, f"the login is of no use: {redact(str(error))}"
    server = redact(settings.base_url)
    if place is None:
        return False, f"no API key for {server}, see wandb login"
    return True, f"{server}, login from {place}"


def user_settings() -> Any:
    """W&B's settings, from its files and environment variables; starts nothing.

    Raises:
        Exception: W&B cannot be imported, or refuses an environment variable.
    """
    # W&B sends reports about itself, also from offline runs. Read at the import.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from wandb.sdk import wandb_setup

    wandb.termsetup(wandb.Settings(show_info=False), None)  # it would name each file on the terminal; warnings stay
    settings = wandb_setup.singleton().settings
    wandb.termsetup(wandb.Settings(show_info=False), None)  # reading them has undone that
    return settings


def description(settings: Any, run_dir_name: str, config: MonitorConfig) -> dict[str, Any]:
    """Names, tags and notes of the run, as fields of `wandb.Settings`; secrets in them are masked.

    Args:
        settings:     those of the user
        run_dir_name: the name of a run without another one
        config:       goes before what the user has told W&B
    """
    configured = {"project": config.wandb_project, "entity": config.wandb_entity, "run_name": config.wandb_name}
    defaults = {"project": "stylegan_dist", "run_name": run_dir_name}
    values = {name: configured.get(name) or getattr(settings, name) or defaults.get(name) for name in _DESCRIPTION}
    return {name: redact(value) for name, value in values.items() if value}


def names_a_secret(words: list[str]) -> bool:
    """Whether arguments of a command, such as "name=value", or what W&B copies of the environment hold a secret."""
    pairs = [(name, value or name) for name, _, value in (word.partition("=") for word in words)]
    pairs += [(name, value) for name, value in os.environ.items() if name.startswith("SLURM_")]
    return redact(words) != words or any(redact(value, name) != value or name == "SLURM_JWT" for name, value in pairs)


def _stored_mode(settings: Any) -> tuple[str, str]:
    """The mode in W&B's files of settings, the folder's before the user's, and where it stands."""
    for path in (settings.settings_workspace, settings.settings_system):
        parser = configparser.ConfigParser()
        # Read here, too: W&B leaves out a whole file for one wrong line, but an opt-out must hold.
        with contextlib.suppress(OSError, UnicodeError, configparser.Error):
            parser.read(path)
            if stored := parser.get("default", "mode", fallback=""):
                return _PRIVATE.get(stored, "online"), f"mode = {stored} in {path}"
    return _PRIVATE.get(settings.mode, "online"), f"mode = {settings.mode} in W&B's settings"


def _place_of_credentials(settings: Any) -> str | None:
    """Where the login for the server of `settings` was found, if there is one.

    Raises:
        Exception: there is something that cannot be a key.
    """
    for value, variable in ((settings.api_key, "WANDB_API_KEY"), (settings.identity_token_file, "WANDB_IDENTITY_TOKEN_FILE")):
        if value:
            return variable if os.environ.get(variable) else "W&B's settings"
    return os.environ.get("NETRC") or "the netrc file" if _netrc_key(settings) else None


def _netrc_key(settings: Any) -> str | None:
    for module in ("wbauth", "auth"):  # since 0.25, since 0.23
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"wandb.sdk.lib.{module}").read_netrc_auth(host=settings.base_url)
    return importlib.import_module("wandb.sdk.lib.apikey").api_key(settings)

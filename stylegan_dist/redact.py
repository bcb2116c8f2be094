"""Masks secrets in text that is sent to a tracker, printed or stored."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

_WORDS = r"(?:api_?key|access_?key|private_?key|secret|token|passwd|password|credential|signature)"
_NAME = re.compile(rf"(?<![a-z]){_WORDS}s?(?![a-z])", re.IGNORECASE)      # api_key, HF_TOKEN; not "tokenizer"
# scheme://user:password@host; also with a slash in the password, which then is no number as a port is.
_URL_USER = re.compile(r"(?<=://)(?:[^/@\s]+|[^/@\s:]*:(?!\d+/)[^@\s]*)(?=@)")
# user:password@host:path as scp has it, and //user:password@host
_BARE_USER = re.compile(r"(?<![\w./+:-])(?:[\w.+-]+:(?!//)[^\s'\"<>]*(?=@[^\s/@]*:)|//[^/@\s:]*:[^\s'\"<>]*(?=@))")
_URL_QUERY = re.compile(rf"([?&;][^=&;\s]*(?:{_WORDS}|\bsig)[^=&;\s]*=)[^&;\s]+", re.IGNORECASE)
_URL_REST = re.compile(r"(?<=://)([^\s'\"<>?#;]*)(?:[?#]|;(?=\S))[^\s'\"<>]*")
_ODD_PORT = re.compile(r"(?<=://)(?!arn:|\[)[^/@\s:]*:(?!\d*(?:[/\s'\"]|$))[^/@\s'\"]*")
_PATH = re.compile(r"(?<=[^/:])/.*", re.DOTALL)  # what follows the host
MASK = "***"
MIN_SECRET = 8  # characters; shorter values of the environment are settings such as "false"


def redact(value, name: str = ""):
    """A copy of nested dicts, lists and plain values in which secrets are "***".

    Masked: strings under a name like "api_key" or "password"; user:password@ and signed query parts of URLs; the
    values of environment variables with such a name and the passwords of proxies, wherever they appear. Numbers are
    never taken for secrets.
    """
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _NAME.search(name):
        return MASK
    value = _URL_QUERY.sub(rf"\1{MASK}", _BARE_USER.sub(MASK, _URL_USER.sub(MASK, value)))
    for variable, content in os.environ.items():
        if _NAME.search(variable):
            secret = content
        elif variable.lower().endswith("_proxy"):
            secret = content.rpartition("@")[0].rpartition("://")[2].partition(":")[2]
        else:
            continue
        if len(secret) >= MIN_SECRET:
            value = value.replace(secret, MASK)
    return value


def mask_urls(text: str) -> str:
    """`redact` for what a library says of URLs that it was sent to: their queries and fragments are "***" as a whole."""
    return redact(_ODD_PORT.sub(MASK, _URL_REST.sub(rf"\1?{MASK}", _URL_USER.sub(MASK, text))))


def mask_location(location: str) -> str:
    """A location for messages. What could be a secret is "***", also where it is percent-encoded."""
    plain = unquote(location)
    return mask_urls(re.sub(r"://.*@", f"://{MASK}@", plain, flags=re.DOTALL))


def carries_secret(url: str) -> bool:
    """Whether a URL has a user or password, a query, parameters or a fragment, also where they are percent-encoded.

    So has what is no URL and yet names a user and a password in front of a host.

    A `?` that can only be a wildcard of a pattern is none: where no "=" follows, and for http only before what a number or
    an ending of shards can hold.
    """
    if "://" not in url:
        return bool(_BARE_USER.search(url))
    plain = _PATH.sub(lambda path: re.sub("%40|%23", "", path[0]), url)  # in a name these are the letters @ and #
    scheme, _, rest = unquote(plain).partition("://")
    host = rest.partition("/")[0]
    web = scheme.lower() in ("http", "https")
    bucket = scheme.lower() in ("s3", "gs", "gcs", "hf")  # has no port
    if ":" in host and not host.startswith(("arn:", "[")) and (
            bucket or "@" in rest or not re.fullmatch(r"[^:]*:\d*", host)):
        return True
    if "@" in host:  # of hf, a revision comes later
        return True
    if re.search("[?;].*=", rest, re.DOTALL):
        return True
    return web and bool("#" in rest or re.search(r"\?(?![][?*{},.\d_-]*(?:\.tar)?(?:/|$))", rest))

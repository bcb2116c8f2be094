"""Keeping secrets out of what is sent to a tracker."""

from __future__ import annotations

import os
import re

_WORDS = r"(?:api_?key|access_?key|private_?key|secret|token|passwd|password|credential|signature)"
_NAME = re.compile(rf"(?<![a-z]){_WORDS}s?(?![a-z])", re.IGNORECASE)      # api_key, HF_TOKEN; not "tokenizer"
_URL_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")                          # scheme://user:password@host
_URL_QUERY = re.compile(rf"([?&][^=&\s]*(?:{_WORDS}|\bsig)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
MASK = "***"


def redact(value, name: str = ""):
    """A copy of nested dicts, lists and plain values in which secrets are "***".

    Masked: strings under a name like "api_key" or "password"; user:password@ and signed query parts of URLs; the
    values of environment variables with such a name, wherever they appear. Numbers are never taken for secrets.
    """
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _NAME.search(name):
        return MASK
    value = _URL_QUERY.sub(rf"\1{MASK}", _URL_USER.sub(MASK, value))
    for variable, secret in os.environ.items():
        if len(secret) >= 8 and _NAME.search(variable):  # shorter values are settings such as "false"
            value = value.replace(secret, MASK)
    return value

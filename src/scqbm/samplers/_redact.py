"""Texts without access tokens: whatever a user may see or store goes through here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

# Environment variables that hold a secret.
SECRET_VARIABLES = ("DWAVE_API_TOKEN", "KAIWU_USER_ID", "KAIWU_SDK_CODE")
_TOKEN = re.compile(r"\b[A-Za-z0-9]+-[0-9a-fA-F]{16,}\b")  # what D-Wave's tokens look like


def redacted(text: str, secrets: Iterable[str | None] = ()) -> str:
    """A text without these secrets, those of the environment, and what looks like a token."""
    for secret in [*secrets, *map(os.environ.get, SECRET_VARIABLES)]:
        # a token that was read from a file may end in a newline that the text does not have
        if isinstance(secret, str) and secret.strip():
            text = text.replace(secret.strip(), "[token]")
    return _TOKEN.sub("[token]", text)


def reveals(error: BaseException | None, secrets: Iterable[str | None] = ()) -> bool:
    """Whether an exception, or one that it came from, holds a secret in its text."""
    secrets, seen = list(secrets), set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = f"{error} {error!r}"
        if redacted(text, secrets) != text:
            return True
        error = error.__cause__ or error.__context__
    return False

"""Texts without access tokens: whatever a user may see or store goes through here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

# Environment variables that hold a secret.
SECRET_VARIABLES = ("DWAVE_API_TOKEN", "KAIWU_USER_ID", "KAIWU_SDK_CODE")
_TOKEN = re.compile(r"\b[A-Za-z0-9]+-[0-9a-fA-F]{16,}\b")  # the form of D-Wave's tokens
_SHORT = 6  # a shorter secret may be part of an ordinary word


def redacted(text: str, secrets: Iterable[str | None] = (), mask: str = "[token]") -> str:
    """A text without these secrets, those of the environment, and what looks like a token.

    Parameters
    ----------
    text
        The text.
    secrets
        Secrets besides those of the environment.
    mask
        What stands in their place.
    """
    known = [*secrets, *map(os.environ.get, SECRET_VARIABLES)]
    # a token that was read from a file may end in a newline that the text does not have
    found = {secret.strip() for secret in known if isinstance(secret, str)} - {""}
    for secret in sorted(found, key=len, reverse=True):  # one may be the beginning of another
        if len(secret) < _SHORT:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", lambda _: mask, text)
        else:
            text = text.replace(secret, mask)
    return _TOKEN.sub(lambda _: mask, text)


def reason(error: BaseException, secrets: Iterable[str | None] = ()) -> str:
    """What an error says, redacted, to be put into a sentence of our own."""
    return redacted(str(error) or type(error).__name__, secrets).strip().rstrip(".")


def reveals(error: BaseException, secrets: Iterable[str | None] = ()) -> bool:
    """Whether an exception, or any that it came from, holds a secret in its text."""
    secrets, seen = list(secrets), set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
        text = f"{one} {one!r} {one.args} {getattr(one, '__notes__', '')}"
        if redacted(text, secrets) != text:
            return True
    return False

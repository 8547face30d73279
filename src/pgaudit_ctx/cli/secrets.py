"""URLs from the files of a secrets directory, as Docker and Kubernetes mount them."""

import os
from pathlib import Path
from typing import Final

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from pgaudit_ctx.errors import UsageError

DIRECTORY: Final = "PGAUDIT_CTX_SECRETS_DIR"
_DEFAULT: Final = "/run/secrets"


class _Secrets(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="pgaudit_ctx_", extra="ignore")

    source_url: SecretStr | None = None
    destination_url: SecretStr | None = None


def secret_url(option: str) -> str | None:
    """Give the URL in the file ``pgaudit_ctx_<option>_url``, if there is one.

    Args:
        option: ``"source"`` or ``"destination"``.

    Raises:
        UsageError: If the directory that was named is none, or the file cannot be read.
    """
    named = os.environ.get(DIRECTORY)
    directory = Path(named or _DEFAULT)
    if not directory.is_dir():
        if named:
            raise UsageError(
                f"{DIRECTORY} names {named!r}, which is no directory. Remedy: name the one that "
                f"holds the file pgaudit_ctx_{option}_url"
            )
        return None
    try:
        secrets = _Secrets(_secrets_dir=directory)
    except SettingsError as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else type(cause).__name__
        raise UsageError(
            f"a secret in {str(directory)!r} cannot be read ({reason}). Remedy: give the user that "
            "runs this the right to read it"
        ) from None
    found: SecretStr | None = getattr(secrets, f"{option}_url")
    return None if found is None else found.get_secret_value()

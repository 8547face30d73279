"""URLs from the files of a secrets directory."""

from pathlib import Path

import pytest

from pgaudit_ctx.cli.options import needed
from pgaudit_ctx.errors import UsageError


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SOURCE_URL", "DESTINATION_URL"):
        monkeypatch.delenv(f"PGAUDIT_CTX_{name}", raising=False)
    monkeypatch.setenv("PGAUDIT_CTX_SECRETS_DIR", str(tmp_path))
    return tmp_path


def test_a_url_that_was_not_given_is_read_from_its_secret(secrets: Path) -> None:
    (secrets / "pgaudit_ctx_source_url").write_text("postgresql://u:p@h/db\n")
    assert needed(None, "source") == "postgresql://u:p@h/db"
    with pytest.raises(UsageError, match="pgaudit_ctx_destination_url"):
        needed(None, "destination")


def test_a_url_that_was_given_counts_more_than_a_secret(secrets: Path) -> None:
    (secrets / "pgaudit_ctx_source_url").write_text("postgresql://u:p@h/db")
    assert needed("postgresql://other/db", "source") == "postgresql://other/db"


def test_a_secrets_directory_that_is_none_is_named(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGAUDIT_CTX_SECRETS_DIR", str(secrets / "nowhere"))
    with pytest.raises(UsageError, match="nowhere"):
        needed(None, "source")


def test_without_a_secrets_directory_a_missing_url_says_how_to_give_it(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGAUDIT_CTX_SECRETS_DIR")
    with pytest.raises(UsageError, match=r"--source .*PGAUDIT_CTX_SOURCE_URL"):
        needed(None, "source")


def test_a_secret_that_cannot_be_read_is_told_without_its_content(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "pgaudit_ctx_source_url").write_text("postgresql://u:hunter2@h/db")

    def refuse(*_args: object, **_options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UsageError, match="Permission denied") as refused:
        needed(None, "source")
    assert "hunter2" not in str(refused.value)

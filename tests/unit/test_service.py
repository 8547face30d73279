"""A server is told by its settings and roles, and its remedies are those of its service."""

import pytest

from pgaudit_ctx.source.service import recognise


@pytest.mark.parametrize(
    ("settings", "roles", "name", "wal_level"),
    [
        ({"rds.logical_replication": "off"}, [], "Amazon RDS", "rds.logical_replication = 1"),
        ({}, ["rds_replication"], "Amazon RDS", "reboot"),
        ({"cloudsql.logical_decoding": "off"}, [], "Cloud SQL", "cloudsql.logical_decoding = on"),
        ({}, ["cloudsqlsuperuser"], "Cloud SQL", "database flag"),
        ({"azure.extensions": ""}, ["azure_pg_admin"], "Azure", "wal_level = logical"),
        ({"supautils.privileged_role": "x"}, ["supabase_admin"], "Supabase", "supabase"),
        ({"neon.tenant_id": "x"}, ["neon_superuser"], "Neon", "Neon console"),
    ],
)
def test_a_managed_service_is_told_and_speaks_its_own_words(
    settings: dict[str, str], roles: list[str], name: str, wal_level: str
) -> None:
    service = recognise({"data_directory": "/rdsdbdata/db", **settings}, roles)
    assert service.managed
    assert name in service.name
    assert wal_level in service.change("wal_level", "logical")
    assert "ALTER SYSTEM" not in service.change("wal_level", "logical")


@pytest.mark.parametrize(
    ("settings", "name", "restart"),
    [
        (
            {
                "config_file": "/etc/postgresql/15/main/postgresql.conf",
                "data_directory": "/var/lib/postgresql/15/main",
            },
            "Debian",
            "`sudo systemctl restart postgresql@15-main`",
        ),
        (
            {"data_directory": "/opt/homebrew/var/postgresql@16"},
            "Homebrew",
            "`brew services restart postgresql@16`",
        ),
        (
            {"data_directory": "/usr/local/var/postgresql@14"},
            "Homebrew",
            "`brew services restart postgresql@14`",
        ),
        (
            {"data_directory": "/var/lib/postgresql/data"},
            "the Docker image",
            "restart its container",
        ),
        (
            {"data_directory": "/var/lib/pgsql/16/data"},
            "Red Hat",
            "`sudo systemctl restart postgresql-16`",
        ),
        ({"data_directory": "/srv/pg"}, "a server of your own", "`pg_ctl restart -D /srv/pg`"),
        ({}, "a server of your own", "restart the server"),
    ],
)
def test_a_server_of_ones_own_is_told_how_it_is_restarted(
    settings: dict[str, str], name: str, restart: str
) -> None:
    service = recognise(settings, [])
    assert not service.managed
    assert name in service.name
    change = service.change("wal_level", "logical")
    assert "`ALTER SYSTEM SET wal_level = 'logical'`" in change
    assert restart in change


def test_a_setting_that_needs_no_restart_is_reloaded() -> None:
    change = recognise({"data_directory": "/srv/pg"}, []).change("max_slot_wal_keep_size", "50GB")
    assert "pg_reload_conf" in change
    assert "restart" not in change


@pytest.mark.parametrize(
    ("roles", "right"),
    [
        (["rds_superuser"], "`GRANT rds_replication TO app`"),
        (["cloudsqlsuperuser"], "`ALTER ROLE app REPLICATION`"),
        (["azure_pg_admin"], "`ALTER ROLE app REPLICATION`"),
        (["supabase_admin"], "`ALTER ROLE app REPLICATION`"),
        (["neon_superuser"], "Neon console"),
        ([], "as a superuser run `ALTER ROLE app REPLICATION`"),
    ],
)
def test_the_right_to_replicate_is_given_as_the_service_gives_it(
    roles: list[str], right: str
) -> None:
    assert right in recognise({}, roles).replicate("app")

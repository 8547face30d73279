"""Providers: what other libraries know of the moment, below what the scope says."""

import dataclasses
import json
import logging
import sys
from typing import Any

import pytest
from asgi_correlation_id import correlation_id
from contextvars_extras import ContextVarsRegistry
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from pgaudit_ctx import audit_context, install
from pgaudit_ctx.emission.composer import Composer
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.integrations import providers
from support.clinic import Patient
from support.database import Capture


class RequestVars(ContextVarsRegistry):
    tenant: str = "north"
    shift: str


def composed(*asked: Any, **context: Any) -> dict[str, Any]:
    """What a write would be explained with."""
    with audit_context(**context):
        return json.loads(Composer(providers=asked).compose())


def test_the_current_span_is_named_as_traces_are_searched_for() -> None:
    asked = providers.opentelemetry()
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("request") as span:
        context = composed(asked, user="dr.who")
    ids = span.get_span_context()
    assert context == {
        "user": "dr.who",
        "trace_id": trace.format_trace_id(ids.trace_id),
        "span_id": trace.format_span_id(ids.span_id),
    }
    assert (len(context["trace_id"]), len(context["span_id"])) == (32, 16)
    assert composed(asked, user="dr.who") == {"user": "dr.who"}


def test_what_structlog_has_bound_is_taken_and_the_scope_wins() -> None:
    asked = providers.structlog()
    with bound_contextvars(user="of structlog", request="r1"):
        assert composed(asked, user="dr.who") == {
            "user": "dr.who",
            "request": "r1",
        }
    asked = providers.structlog("request", "unset")
    with bound_contextvars(other=object(), request="r1"):
        assert composed(asked) == {"request": "r1"}


def test_the_correlation_id_is_taken_under_the_key_that_is_wanted() -> None:
    asked = providers.asgi_correlation_id("correlation_id")
    token = correlation_id.set("c1")
    try:
        assert composed(asked) == {"correlation_id": "c1"}
    finally:
        correlation_id.reset(token)
    assert composed(asked, user="x") == {"user": "x"}


def test_the_variables_of_a_registry_are_taken_where_they_are_set() -> None:
    variables = RequestVars()
    asked = providers.contextvars_extras(variables)
    assert composed(asked) == {"tenant": "north"}
    with variables(tenant="south", shift="night"):
        assert composed(asked) == {"tenant": "south", "shift": "night"}


@pytest.mark.parametrize(
    ("provider", "module"),
    [
        (providers.opentelemetry, "opentelemetry"),
        (providers.structlog, "structlog.contextvars"),
        (providers.asgi_correlation_id, "asgi_correlation_id"),
    ],
)
def test_a_library_that_is_not_installed_is_named(
    provider: Any, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match="is not installed"):
        provider()


def test_a_registrys_class_instead_of_an_instance_is_refused() -> None:
    with pytest.raises(UsageError, match="RequestVars\\(\\)"):
        providers.contextvars_extras(RequestVars)


def raises() -> dict[str, Any]:
    raise LookupError("secret")


def is_no_mapping() -> Any:
    return None


def cannot_be_encoded() -> dict[str, Any]:
    return {"fine": 1, "bad": object()}


def has_a_number_without_end() -> dict[str, Any]:
    return {"bad": 10**5000}


def is_too_large() -> dict[str, Any]:
    return {"bad": "secret" * 20_000}


@dataclasses.dataclass
class NotHashable:
    name: str = "x"

    def __call__(self) -> dict[str, Any]:
        raise LookupError("secret")


@pytest.mark.parametrize(
    "wrong",
    [
        raises,
        is_no_mapping,
        cannot_be_encoded,
        has_a_number_without_end,
        is_too_large,
        NotHashable(),
    ],
    ids=lambda wrong: getattr(wrong, "__name__", "not hashable"),
)
def test_a_provider_never_breaks_a_write_and_the_log_names_it_once(
    wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    composer = Composer(providers=[lambda: {"host": "h"}, wrong, lambda: {"zone": "z"}])
    with caplog.at_level(logging.WARNING, "pgaudit_ctx"), audit_context(user="dr.who"):
        for _ in range(2):
            assert json.loads(composer.compose()) == {"user": "dr.who", "host": "h", "zone": "z"}
    (record,) = [record for record in caplog.records if "provider" in record.getMessage()]
    assert getattr(wrong, "__name__", "NotHashable") in record.getMessage()
    assert "secret" not in caplog.text


def test_providers_that_are_too_large_together_give_what_there_is_room_for() -> None:
    context = composed(
        lambda: {"a": "x" * 40_000},
        lambda: {"b": "x" * 40_000},
        lambda: {"c": 1},
        user="dr.who",
    )
    assert sorted(context) == ["a", "c", "user"]


def test_a_write_is_captured_with_what_a_provider_says_although_another_fails(
    capture: Capture, engine: Engine
) -> None:
    install(engine, providers=[is_too_large, providers.contextvars_extras(RequestVars())])
    with Session(engine) as session, audit_context(user="dr.who"):
        session.add(Patient(name="Ann"))
        session.commit()
    (change,) = capture.changes("patient")
    assert change.context == {"user": "dr.who", "tenant": "north"}

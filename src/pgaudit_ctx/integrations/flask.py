"""A Flask extension: one scope for each request, the hook on Flask-SQLAlchemy, and the commands."""

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import click
from flask import Flask, Request, appcontext_pushed, request, request_started
from pydantic import BaseModel

from pgaudit_ctx.context import current_scope
from pgaudit_ctx.emission.composer import Provider
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.hook import install
from pgaudit_ctx.integrations.request import (
    FORWARDED_FOR,
    Address,
    Network,
    TrustedProxies,
    merge,
)
from pgaudit_ctx.integrations.wsgi import AuditContextMiddleware

GetContext: TypeAlias = Callable[[Request], Mapping[str, Any] | None]

_NAME: Final = "pgaudit_ctx"
_PROXY_FIX: Final = "werkzeug.proxy_fix.orig"
_SOURCE: Final = "PGAUDIT_CTX_SOURCE_URL"


class PgAuditCtx:
    """Opens one scope for each request, and attaches the hook to Flask-SQLAlchemy.

    The scope is there before the first ``before_request`` function, in whatever order extensions
    are initialised, and until the last part of a streamed response: everything that Flask does for
    a request is inside, functions that run at its teardown too::

        audit = PgAuditCtx(app)

        @app.before_request
        def tell_user():
            bind_context(user=current_user.name)

    It says what :class:`AuditContextMiddleware <pgaudit_ctx.integrations.wsgi.\
AuditContextMiddleware>` says, with the rule of the route as ``endpoint``. Engines of
    Flask-SQLAlchemy (3 or newer) get the hook when the first application context is pushed; on
    others call :func:`pgaudit_ctx.install`. ``flask pgaudit`` runs ``pgaudit-ctx`` with the URLs of
    the application's configuration.

    Args:
        app: The application; without it call :meth:`init_app` later.
        get_context: Called with the request before the first ``before_request`` function; what it
            returns is merged over the defaults key by key, and ``None`` for a key removes it.
        trusted_proxies: Addresses and networks of proxies whose header is believed; ``"unix"`` for
            one that connects through a Unix socket. Nobody's by default.
        forwarded_header: The header that these proxies set: ``X-Forwarded-For``, ``Forwarded`` or
            one with a single address.
        context_model: For :func:`pgaudit_ctx.install`, as the two that follow.
        require_context: Refuse writes outside of any scope.
        providers: Asked at each emission.

    Raises:
        UsageError: If an entry of ``trusted_proxies`` is neither an address nor a network, or the
            application has the extension already.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        get_context: GetContext | None = None,
        trusted_proxies: Iterable[str | Address | Network] = (),
        forwarded_header: str = FORWARDED_FOR,
        context_model: type[BaseModel] | None = None,
        require_context: bool = False,
        providers: Iterable[Provider] = (),
    ) -> None:
        self._get_context = get_context
        self._trusted_proxies = tuple(trusted_proxies)
        self._forwarded_header = forwarded_header
        self._context_model = context_model
        self._require_context = require_context
        self._providers = tuple(providers)
        self._installing = threading.Lock()
        self._installed: weakref.WeakSet[Flask] = weakref.WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Attach the extension to an application; one object may serve several.

        Args:
            app: The application.

        Raises:
            UsageError: If it has the extension already.
        """
        if _NAME in app.extensions:
            raise UsageError(f"PgAuditCtx was initialised twice for {app!r}: do so once")
        app.extensions[_NAME] = self
        app.wsgi_app = AuditContextMiddleware(  # type: ignore[method-assign] # Flask's documented way
            app.wsgi_app,
            trusted_proxies=self._trusted_proxies,
            forwarded_header=self._forwarded_header,
        )
        # Signals reach us before and after all functions that are registered on the application.
        request_started.connect(self._tell_request, app)
        appcontext_pushed.connect(self._install, app)
        app.cli.add_command(_commands(app))

    def _tell_request(self, _app: Flask, **_: Any) -> None:
        scope = current_scope()
        if scope is None:
            return  # a request context of a test or shell, pushed by hand
        rule = request.url_rule
        merge(scope, None if rule is None else {"endpoint": rule.rule})
        if _PROXY_FIX in request.environ and not self._trusted_proxies:
            # It was put around the application before the extension, and so is inside of it.
            merge(scope, {"ip": TrustedProxies().client(request.remote_addr, [])})
        if self._get_context is not None:
            merge(scope, self._get_context(request))

    def _install(self, app: Flask, **_: Any) -> None:
        """Attach the hook to the engines of Flask-SQLAlchemy, once it has made them."""
        database = app.extensions.get("sqlalchemy")
        engines = getattr(database, "engines", None)
        if not engines:
            return
        # Nobody may go on before the hook is there, nor put it in place anew while others write.
        with self._installing:
            if app in self._installed:
                return
            for engine in engines.values():
                install(
                    engine,
                    context_model=self._context_model,
                    require_context=self._require_context,
                    providers=self._providers,
                )
            self._installed.add(app)
        appcontext_pushed.disconnect(self._install, app)


def _commands(app: Flask) -> click.Command:
    @click.command(
        "pgaudit",
        short_help="The commands of pgaudit-ctx.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def pgaudit(arguments: tuple[str, ...]) -> None:
        """Run ``pgaudit-ctx`` with the URLs of the application's configuration."""
        # The application itself needs none of what the commands load.
        from pgaudit_ctx.cli import main

        found = {name: app.config[name] for name in app.config if name.startswith("PGAUDIT_CTX_")}
        with contextlib.suppress(KeyError):
            found.setdefault(_SOURCE, app.config["SQLALCHEMY_DATABASE_URI"])
        for name, value in found.items():
            os.environ.setdefault(name, _text(value))
        main(arguments, "flask pgaudit")

    return pgaudit


def _text(value: Any) -> str:
    # SQLAlchemy's URL hides its password from str().
    render = getattr(value, "render_as_string", None)
    return str(value) if render is None else str(render(hide_password=False))

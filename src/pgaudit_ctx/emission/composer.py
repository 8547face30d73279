"""What a message says: the scope's context over that of the providers, checked by the model."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ValidationError

from pgaudit_ctx.context import Scope, current_scope
from pgaudit_ctx.errors import ContextInvalid, ContextRequired
from pgaudit_ctx.message import EMPTY, encode_context, plain_context

log = logging.getLogger(__name__)

Provider: TypeAlias = Callable[[], Mapping[str, Any]]
Observer: TypeAlias = Callable[[str, str | None], None]

observers: Final[list[Observer]] = []
"""Told of each write, on whatever engine: the text that explains it, and the statement if known.

For tests. The text is emitted only where the transaction's log does not hold it by now.
"""


class Composer:
    """Composes the text of messages under the options of one installation.

    Args:
        context_model: Checks the merged context at the first emission of a scope.
        require_context: Refuse to compose anything outside of a scope.
        providers: Asked at each emission; their keys lie below the scope's.
    """

    def __init__(
        self,
        context_model: type[BaseModel] | None = None,
        *,
        require_context: bool = False,
        providers: Iterable[Provider] = (),
    ) -> None:
        self._context_model = context_model
        self._require_context = require_context
        self._providers = tuple(providers)
        self._complained: set[object] = set()
        # Whether what a scope says is all there is to it.
        self._plain = not (context_model or require_context or self._providers)

    def speaks(self) -> bool:
        """Say whether there may be anything to say, or to refuse."""
        return current_scope() is not None or bool(self._providers) or self._require_context

    def compose(self, statement: str | None = None) -> str:
        """Give the text of the message that explains a write made now.

        Args:
            statement: The write, for observers.

        Returns:
            One JSON object in ASCII; ``"{}"`` if there is nothing to say.

        Raises:
            ContextRequired: If a context is required and there is none.
            ContextInvalid: If it does not fit the model.
        """
        scope = current_scope()
        text = scope.text if scope is not None and self._plain else self._compose(scope)
        for observe in observers:
            observe(text, statement)
        return text

    def _compose(self, scope: Scope | None) -> str:
        if self._require_context and (scope is None or not scope.merged):
            raise ContextRequired(
                "a write without context, on an engine installed with require_context=True. "
                "Remedy: do it inside `with audit_context(user=..., reason=...):`"
            )
        if scope is None and not self._providers:
            return EMPTY
        told = [(provider, self._ask(provider)) for provider in self._providers]
        merged = {key: value for _, values in told for key, value in values.items()}
        if scope is not None:
            merged.update(scope.merged)
            if merged and self._context_model is not None:
                self._validate(scope, merged, self._context_model)
            if not self._providers:
                return scope.text
        try:
            return encode_context(merged)
        except ContextInvalid:
            return self._what_fits(scope, told)

    def complain(self, about: object, message: str, *arguments: object) -> None:
        """Log a warning, once for each thing it is about."""
        if about not in self._complained:
            self._complained.add(about)
            log.warning(message, *arguments)

    def _what_fits(
        self, scope: Scope | None, told: Iterable[tuple[Provider, Mapping[str, Any]]]
    ) -> str:
        """Encode the scope's context, with as many of the providers as there is room for."""
        own = {} if scope is None else dict(scope.merged)
        text = EMPTY if scope is None else scope.text
        kept: dict[str, Any] = {}
        for provider, values in told:
            try:
                text = encode_context({**kept, **values, **own})
            except ContextInvalid as error:
                self._leave_out(provider, error)
            else:
                kept.update(values)
        return text

    def _validate(self, scope: Scope, merged: dict[str, Any], model: type[BaseModel]) -> None:
        validated = (scope.stamp, model)
        if scope.validated_by == validated:
            return
        try:
            model.model_validate(merged)
        except ValidationError as error:
            # Neither pydantic's own text nor its "input" may appear: they quote values.
            fields = ", ".join(
                f"{'.'.join(map(str, found['loc'])) or 'the whole'} ({found['type']})"
                for found in error.errors(include_input=False, include_url=False)
            )
            raise ContextInvalid(
                f"the context does not fit {model.__name__}: {fields}. Remedy: correct these keys "
                "in audit_context() or bind_context()"
            ) from None
        scope.validated_by = validated

    def _ask(self, provider: Provider) -> Mapping[str, Any]:
        try:
            return plain_context(provider())
        except Exception as error:  # noqa: BLE001 - whatever it raises must not break the write
            self._leave_out(provider, error)
            return {}

    def _leave_out(self, provider: Provider, error: Exception) -> None:
        # By its identity, for it need not be hashable.
        self.complain(
            id(provider),
            "the context provider %s failed with %s: its keys are left out",
            getattr(provider, "__qualname__", type(provider).__name__),
            type(error).__name__,
        )

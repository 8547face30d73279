"""What a message says: the scope's context over that of the providers, checked by the model."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from pgaudit_ctx.context import Scope, current_scope
from pgaudit_ctx.errors import ContextInvalid, ContextRequired
from pgaudit_ctx.message import EMPTY, encode_context, plain_context

log = logging.getLogger(__name__)

Provider: TypeAlias = Callable[[], Mapping[str, Any]]


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

    def compose(self) -> str:
        """Give the text of the message that explains a write made now.

        Returns:
            One JSON object in ASCII; ``"{}"`` if there is nothing to say.

        Raises:
            ContextRequired: If a context is required and there is none.
            ContextInvalid: If it does not fit the model.
        """
        scope = current_scope()
        if scope is not None and self._plain:
            return scope.text
        if self._require_context and (scope is None or not scope.merged):
            raise ContextRequired(
                "a write without context, on an engine installed with require_context=True. "
                "Remedy: do it inside `with audit_context(user=..., reason=...):`"
            )
        if scope is None and not self._providers:
            return EMPTY
        merged: dict[str, Any] = {}
        for provider in self._providers:
            merged.update(self._ask(provider))
        if scope is not None:
            merged.update(scope.merged)
            if merged and self._context_model is not None:
                self._validate(scope, merged, self._context_model)
            if not self._providers:
                return scope.text
        return encode_context(merged)

    def complain(self, about: object, message: str, *arguments: object) -> None:
        """Log a warning, once for each thing it is about."""
        if about not in self._complained:
            self._complained.add(about)
            log.warning(message, *arguments)

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
            self.complain(
                provider,
                "the context provider %s failed with %s: its keys are left out",
                getattr(provider, "__qualname__", type(provider).__name__),
                type(error).__name__,
            )
            return {}

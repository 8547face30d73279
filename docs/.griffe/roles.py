"""Turns the Sphinx roles of our docstrings into Markdown; used by mkdocstrings (see mkdocs.yml)."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")


class Roles(griffe.Extension):
    """Makes code type of a role, and a single colon of the two before a literal block."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value).replace("::\n\n", ":\n\n")

"""Asking for a Docker engine leaves nothing behind in a run that has none."""

import gc
import sys

import pytest

from pgaudit_ctx.testbed.server import docker_answers


def test_where_no_engine_answers_no_later_test_is_warned_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.collect()
    warned = []
    monkeypatch.setattr(sys, "unraisablehook", warned.append)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert not docker_answers()
    gc.collect()
    assert warned == []

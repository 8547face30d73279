"""One process that runs transactions when it is told to, and says what they took.

It reads a JSON object from each line of its input and answers with one. It is run by the Python
of the environment that is measured, so it needs SQLAlchemy and a driver only.

    python serve.py
"""

import asyncio
import gc
import json
import os
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from typing import Any

import sqlalchemy
from libraries import LIBRARIES, Library
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from workload import KEPT, Mapping

ASYNC_DRIVERS = ("psycopg_async", "asyncpg")


class Side:
    """One side of a pair: an engine, audited by one library or by none."""

    def __init__(self, library: Library, mapping: Mapping, url: str, driver: str) -> None:
        self._library = library
        self._mapping = mapping
        self._is_async = driver in ASYNC_DRIVERS
        self._number = 0
        url = url.replace("postgresql://", f"postgresql+{driver}://")
        if self._is_async:
            from sqlalchemy.ext.asyncio import create_async_engine  # needs greenlet

            self._loop = asyncio.new_event_loop()
            self._async_engine = create_async_engine(url)
            library.attach(self._async_engine.sync_engine)
            self._kept = self._loop.run_until_complete(self._load())
        else:
            self._engine = create_engine(url)
            library.attach(self._engine)
            self._kept = mapping.kept(self._engine)

    async def _load(self) -> list[Any]:
        async with self._async_engine.connect() as connection:
            return await connection.run_sync(self._mapping.kept)

    def run(self, transactions: int) -> dict[str, float]:
        gc.collect()
        if self._is_async:
            return self._loop.run_until_complete(self._run_async(transactions))
        scope, new, kept = self._library.scope, self._mapping.new, self._kept
        cpu, started = time.process_time(), time.perf_counter()
        for number in range(self._number, self._number + transactions):
            with scope(number), Session(self._engine, expire_on_commit=False) as session:
                patient = kept[number % KEPT]
                session.add_all((patient, new(number)))
                patient.visits += 1
                session.commit()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        self._number += transactions
        return {"seconds": seconds, "cpu": cpu}

    async def _run_async(self, transactions: int) -> dict[str, float]:
        from sqlalchemy.ext.asyncio import AsyncSession  # needs greenlet

        scope, new, kept = self._library.scope, self._mapping.new, self._kept
        cpu, started = time.process_time(), time.perf_counter()
        for number in range(self._number, self._number + transactions):
            with scope(number):
                async with AsyncSession(self._async_engine, expire_on_commit=False) as session:
                    patient = kept[number % KEPT]
                    session.add_all((patient, new(number)))
                    patient.visits += 1
                    await session.commit()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        self._number += transactions
        return {"seconds": seconds, "cpu": cpu}


class Process:
    """The commands, each a method; the libraries and engines that were opened."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Library, Mapping]] = {}
        self._sides: dict[str, Side] = {}

    def create(self, library: str, url: str) -> dict[str, Any]:
        """Make the tables in an empty database, and whatever the library needs beside them."""
        chosen, mapping = self.known(library)
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        chosen.before_tables(engine)
        mapping.base.metadata.create_all(engine)
        chosen.after_tables(engine)
        mapping.fill(engine)
        engine.dispose()
        return {
            "trail": chosen.trail,
            "messages": chosen.messages,
            "version": version(chosen.distribution) if chosen.distribution else None,
            "sqlalchemy": sqlalchemy.__version__,
        }

    def open(self, side: str, library: str, url: str, driver: str) -> dict[str, Any]:
        self._sides[side] = Side(*self.known(library), url, driver)
        return {}

    def run(self, side: str, transactions: int) -> dict[str, Any]:
        return self._sides[side].run(transactions)

    def scope(self, repeats: int) -> dict[str, Any]:
        """Microseconds to enter and leave audit_context, each figure over ten thousand times."""
        from pgaudit_ctx import audit_context  # not in the peers' environment

        figures = []
        for _ in range(repeats):
            numbers = range(10_000)
            started = time.perf_counter()
            for _ in numbers:
                with audit_context(user="dr.who", reason="ward round"):
                    pass
            between = time.perf_counter()
            for _ in numbers:
                pass
            figures.append((2 * between - started - time.perf_counter()) / len(numbers) * 1e6)
        return {"microseconds": figures}

    def memory(self, url: str, emissions: int) -> dict[str, Any]:
        """What is held after many emissions, each of another context, ten to a transaction."""
        import tracemalloc  # it may only be started after the first figures

        from pgaudit_ctx import audit_context, install  # not in the peers' environment

        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        install(engine)

        def emit(transactions: int) -> None:
            for number in range(transactions):
                with engine.begin() as connection:
                    for part in range(10):
                        with audit_context(user=f"user{number}", request=f"{number}-{part}"):
                            connection.exec_driver_sql("UPDATE patients SET ward = 1 WHERE id = 0")

        transactions = emissions // 10
        emit(max(100, transactions // 50))
        gc.collect()
        resident = _resident()
        started = time.perf_counter()
        emit(transactions)
        seconds = time.perf_counter() - started
        gc.collect()
        grown = _resident() - resident
        tracemalloc.start()
        emit(transactions // 100)
        gc.collect()
        traced, _ = tracemalloc.get_traced_memory()
        emit(transactions // 20)
        gc.collect()
        traced_grown = tracemalloc.get_traced_memory()[0] - traced
        tracemalloc.stop()
        engine.dispose()
        return {
            "emissions": transactions * 10,
            "seconds": seconds,
            "resident": resident,
            "grown": grown,
            "traced_emissions": transactions // 20 * 10,
            "traced_grown": traced_grown,
        }

    def known(self, library: str) -> tuple[Library, Mapping]:
        if library not in self._known:
            chosen = LIBRARIES[library]()
            self._known[library] = (chosen, Mapping(chosen.before_models))
        return self._known[library]


def _resident() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - as little as possible is allocated
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(process: Any) -> None:
    """Do what each line of the input asks for, by the methods of a process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with redirect_stdout(sys.stderr):  # libraries may print
        for line in sys.stdin:
            asked = json.loads(line)
            command = getattr(process, asked.pop("do"))
            print(json.dumps(command(**asked)), file=answers)


if __name__ == "__main__":
    main(Process())

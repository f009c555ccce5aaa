"""procrastinate, with a task that writes its result by a separate statement, as procrastinate's documentation shows."""

import asyncio
import os

import procrastinate
from psycopg_pool import AsyncConnectionPool

from .command import BODY_BYTES, PROMPT, add_results, command


def app_of(url: str, connections: int = 4) -> procrastinate.App:
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=connections))


def install(url: str) -> None:
    add_results(url)

    async def apply() -> None:
        app = app_of(url)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    asyncio.run(apply())


def insert(url: str, count: int) -> None:
    async def defer() -> None:
        app = app_of(url)
        task = app.task(name="answer")(lambda prompt: None)
        async with app.open_async():
            await task.batch_defer_async(*[{"prompt": PROMPT}] * count)

    asyncio.run(defer())


def work(url: str, batch: int) -> None:
    body = os.urandom(BODY_BYTES)

    async def run() -> None:
        app = app_of(url, min(batch + 2, 10))
        async with (
            app.open_async(),
            AsyncConnectionPool(
                url, min_size=1, max_size=min(batch, 10), kwargs={"autocommit": True}, open=False
            ) as pool,
        ):

            @app.task(name="answer", pass_context=True)
            async def answer(context: procrastinate.JobContext, prompt: str) -> None:
                async with pool.connection() as connection:
                    await connection.execute("INSERT INTO result VALUES (%s, %s)", (context.job.id, body))

            await app.run_worker_async(concurrency=batch, wait=True, fetch_job_polling_interval=0.1)

    asyncio.run(run())


if __name__ == "__main__":
    command(install, insert, work)

"""pgqueuer on asyncpg and uvloop, with an entrypoint that writes its result by a separate statement."""

import asyncio
import os
from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from .command import ADD_RESULT, BODY_BYTES, PROMPT, add_results, command


def install(url: str) -> None:
    add_results(url)

    async def apply() -> None:
        async with asyncpg.create_pool(url, min_size=1) as pool:
            await Queries(AsyncpgPoolDriver(pool)).install()

    asyncio.run(apply())


def insert(url: str, count: int) -> None:
    async def enqueue() -> None:
        async with asyncpg.create_pool(url, min_size=1) as pool:
            await Queries(AsyncpgPoolDriver(pool)).enqueue(["answer"] * count, [PROMPT.encode()] * count, [0] * count)

    asyncio.run(enqueue())


def work(url: str, batch: int) -> None:
    body = os.urandom(BODY_BYTES)

    async def run() -> None:
        async with asyncpg.create_pool(url, min_size=2, max_size=10) as pool:
            queue = PgQueuer.from_asyncpg_pool(pool)

            @queue.entrypoint("answer")
            async def answer(job: Job) -> None:
                await pool.execute(ADD_RESULT, job.id, body)

            await queue.run(
                batch_size=batch, max_concurrent_tasks=2 * batch, dequeue_timeout=timedelta(milliseconds=100)
            )

    uvloop.run(run())


if __name__ == "__main__":
    command(install, insert, work)

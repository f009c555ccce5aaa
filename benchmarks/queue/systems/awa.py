"""awa (the package awa-pg), with a task that writes its result by a separate statement, as awa's documentation
shows."""

import asyncio
import os
from dataclasses import dataclass

import asyncpg
import awa

from .command import ADD_RESULT, BODY_BYTES, PROMPT, add_results, command

QUEUE = "answers"


@dataclass
class Answer:
    """The arguments of a job."""

    prompt: str


def client_of(url: str) -> awa.AsyncClient:
    """awa's URLs must name a host. The parameter `host`, a folder with a socket, overrides it."""
    return awa.AsyncClient(url.replace("@/", "@localhost/"))


def install(url: str) -> None:
    add_results(url)

    async def apply() -> None:
        async with client_of(url) as client:
            await client.migrate()
            await client.install_queue_storage()

    asyncio.run(apply())


def insert(url: str, count: int) -> None:
    async def enqueue() -> None:
        async with client_of(url) as client:
            await client.enqueue_many_copy([Answer(PROMPT)] * count, queue=QUEUE)

    asyncio.run(enqueue())


def work(url: str, batch: int) -> None:
    body = os.urandom(BODY_BYTES)

    async def run() -> None:
        client = client_of(url)
        async with asyncpg.create_pool(url, min_size=1, max_size=min(batch, 10)) as pool:

            @client.task(Answer, queue=QUEUE)
            async def answer(job: awa.Job) -> None:
                await pool.execute(ADD_RESULT, job.id, body)

            await client.start([(QUEUE, batch)], poll_interval_ms=100)
            await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    command(install, insert, work)

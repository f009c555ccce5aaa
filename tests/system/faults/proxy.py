"""A TCP proxy before a server's socket that can swallow packets, or hold them back, while connections stay open."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread


class Proxy:
    """Listens on a free port of localhost and passes on to a Unix socket; runs in a thread of its own."""

    def __init__(self, target: Path) -> None:
        self.port = 0
        self.swallows = False
        """Whether bytes in either direction vanish, while both ends believe that they arrived."""
        self.late = b""
        """Bytes that waited on their way to the server until `heal` delivered them."""
        self._target = target
        self._ready = Event()
        self._thread = Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None] | None] = set()

    def __enter__(self) -> "Proxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def hold(self) -> None:
        """From now on bytes wait in the proxy."""
        self._loop.call_soon_threadsafe(self._passes.clear)

    def heal(self) -> None:
        """Deliver what waits, and pass on what comes."""
        self.swallows = False
        self._loop.call_soon_threadsafe(self._passes.set)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._passes, self._ends = asyncio.Event(), asyncio.Event()
        self._passes.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ends.wait()
        server.close()
        self.swallows = True
        self._passes.set()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*filter(None, self._connections))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
        self._writers.add(writer)
        with suppress(OSError):
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._target)
            self._writers.add(inner_writer)
            await asyncio.gather(self._pump(reader, inner_writer, self._note), self._pump(inner_reader, writer))
        await self._close(writer)
        self._connections.discard(asyncio.current_task())

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        note: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        waited = False  # and once it did, what follows belongs to a statement that its sender gave up on
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                waited = waited or not self._passes.is_set()
                await self._passes.wait()
                if not self.swallows:
                    writer.write(data)
                    await writer.drain()
                    if waited:
                        note(data)
        await self._close(writer)

    def _note(self, data: bytes) -> None:
        self.late += data

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

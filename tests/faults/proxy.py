"""A TCP proxy before a server's socket that can swallow packets, or hold them back, while connections stay open."""

import asyncio
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread


class Proxy:
    """Listens on a free port of localhost and passes on to a Unix socket; runs in a thread of its own."""

    def __init__(self, target: Path) -> None:
        self.port = 0
        self.swallows = False
        """Bytes in either direction vanish, and both ends believe that they arrived."""
        self._target = target
        self._passes: asyncio.Event | None = None
        self._ready = Event()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def hold(self) -> None:
        """From now on bytes wait in the proxy."""
        self._tell("clear")

    def heal(self) -> None:
        """Deliver what waits, and pass on what comes."""
        self.swallows = False
        self._tell("set")

    def _tell(self, method: str) -> None:
        assert self._passes is not None
        self._loop.call_soon_threadsafe(getattr(self._passes, method))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._passes = asyncio.Event()
        self._passes.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in (tasks := asyncio.all_tasks(self._loop)):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.close()
            return
        # At the end of the proxy; asyncio would print that this was cancelled.
        with suppress(asyncio.CancelledError):
            await asyncio.gather(self._pump(reader, inner_writer), self._pump(inner_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._passes is not None
        try:
            while data := await reader.read(1 << 16):
                await self._passes.wait()
                if not self.swallows:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

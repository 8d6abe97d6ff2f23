#!/usr/bin/env python3
"""A TCP proxy that adds a delay to all that comes back, and limits nothing else.

delay_proxy.py PORT TARGET_PORT MILLISECONDS
"""

from __future__ import annotations

import asyncio
import socket
import sys

CHUNK = 1 << 20
MOST = 64 << 20  # bytes of one connection under way


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Copy one direction; every chunk is sent `delay` seconds after it came."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST // CHUNK)

    async def send() -> None:
        while True:
            due, data = await queue.get()
            if (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    sender = asyncio.create_task(send())
    try:
        data = b"start"
        while data and not sender.done():
            data = await reader.read(CHUNK)
            await queue.put((loop.time() + delay, data))
        await sender
    except (ConnectionError, asyncio.CancelledError):
        sender.cancel()
        writer.close()


async def main(port: int, target: int, delay: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", target, limit=CHUNK)
        for each in writer, forth:
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(pass_on(reader, forth, 0), pass_on(back, writer, delay))

    server = await asyncio.start_server(connected, "127.0.0.1", port, limit=CHUNK)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000))

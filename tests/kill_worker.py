"""Write at random to a spec, telling each step, until killed: `python -m tests.kill_worker SPEC SEED`.

Each line is flushed before the step it announces (`w OFFSET LENGTH BYTE`, `z OFFSET LENGTH 0`) or after the one it
reports (`f`: all that was announced before is durable).
"""

from __future__ import annotations

import random
import sys

import trio

from nbdfs.stack import open_stack


async def main(spec: str, seed: int) -> None:
    chance = random.Random(seed)
    async with open_stack(spec) as source:
        while True:
            for _ in range(chance.randrange(1, 12)):
                offset = chance.randrange(source.info.size)
                length = min(chance.choice([1, 512, 4096, 10_000, 70_000]), source.info.size - offset)
                byte = chance.randrange(1, 256)
                if chance.random() < 0.1:
                    print("z", offset, length, 0, flush=True)
                    await source.zero(offset, length)
                else:
                    print("w", offset, length, byte, flush=True)
                    await source.pwrite(memoryview(bytes([byte]) * length), offset)
            await source.flush()
            print("f", flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))

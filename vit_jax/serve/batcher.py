"""Puts the images of many requests together on the device, in batches of a few fixed sizes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8


class Busy(Exception):
    """So many images wait already that no more are taken."""


@dataclass
class Batcher:
    """Computes images together: those that came within `wait_ms` of the first, and while the batch before ran.

    Batches are filled up to a power of two, so that few sizes are compiled. One thread computes, in order; the next
    batch is gathered meanwhile.
    """

    compute: Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n k"]]
    max_batch: int = 32
    wait_ms: float = 3.0
    capacity: int = 256  # images that may wait, those that are being decoded included
    watch: Callable[[int, float], None] = lambda images, seconds: None  # is told of each batch
    waiting: int = 0
    _queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future]] = field(default_factory=asyncio.Queue)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "device"))
    _running: asyncio.Task | None = None

    def sizes(self) -> list[int]:
        """The sizes that are compiled: powers of two up to `max_batch`."""
        return [1 << i for i in range(self.max_batch.bit_length()) if 1 << i <= self.max_batch]

    def warm_up(self, shape: tuple[int, int, int]) -> None:
        """Compiles all sizes, so that no request waits for it."""
        for size in self.sizes():
            self.compute(np.zeros((size, *shape), np.uint8))

    def start(self) -> None:
        """Begins to compute; called in the event loop."""
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends, once all that was taken is computed."""
        while self.waiting:
            await asyncio.sleep(0.01)
        if self._running:
            self._running.cancel()
        self._thread.shutdown()

    def reserve(self, images: int) -> None:
        """Takes places in the queue, or raises `Busy`; `release` gives them back."""
        if self.waiting + images > self.capacity:
            raise Busy
        self.waiting += images

    def release(self, images: int) -> None:
        self.waiting -= images

    async def submit(self, image: UInt8[np.ndarray, "h w c"]) -> Float[np.ndarray, " k"]:
        """The probabilities of one image."""
        answer: asyncio.Future = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, answer))
        return await answer

    async def alone(self, work: Callable[[], np.ndarray]) -> np.ndarray:
        """The result of other work on the device, done between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _run(self) -> None:
        """Gathers a batch while the one before is computed."""
        loop, computing = asyncio.get_running_loop(), None
        while True:
            batch = await self._gather(computing)
            computing = loop.create_task(self._compute(batch))

    async def _gather(self, computing: asyncio.Task | None) -> list[tuple[np.ndarray, asyncio.Future]]:
        """The images that come within `wait_ms` of the first one, and until `computing` ends."""
        batch, most = [await self._queue.get()], self.sizes()[-1]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.wait_ms / 1000):
                while len(batch) < most:
                    batch.append(await self._queue.get())
        if computing:
            await computing
        while len(batch) < most and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    async def _compute(self, batch: list[tuple[np.ndarray, asyncio.Future]]) -> None:
        """Answers each image of the batch, whatever happens: with a row, or with the exception."""
        reason: Exception = RuntimeError("the batch was not computed")
        try:
            images = np.stack([image for image, _ in batch])
            size = next(size for size in self.sizes() if size >= len(images))
            padded = np.pad(images, ((0, size - len(images)), (0, 0), (0, 0), (0, 0)))
            start = time.perf_counter()
            found = await self.alone(lambda: self.compute(padded))
            if len(found) != size:
                raise ValueError(f"{len(found)} rows of probabilities for {size} images")
            for (_, answer), row in zip(batch, found[: len(batch)], strict=True):
                if not answer.done():  # a client that went away
                    answer.set_result(row)
            self.watch(len(batch), time.perf_counter() - start)
        except Exception as fault:  # the requests answer 500, and the server goes on
            logging.getLogger(__name__).exception("a batch of %d images failed", len(batch))
            reason = fault
        finally:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(reason)

"""A processor that tells how many tasks the event loop of its process has, which nobody sees from outside.

For ``steady``: it writes the number into a file named after the process, at most once a second.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from guerrilla.backends.processor import CallNext, Envelope, Field, Processor, ProcessorConfig, Reply


class CensusConfig(ProcessorConfig):
    """The keys of Census."""

    census_folder: str = Field(description="Where the files are written.")


class Census(Processor[CensusConfig]):
    """Counts tasks."""

    _next = 0.0

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Count if it is time, and pass on."""
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + 1.0
            Path(self.config.census_folder, f"tasks-{os.getpid()}").write_text(str(len(asyncio.all_tasks())))
        return await call_next()

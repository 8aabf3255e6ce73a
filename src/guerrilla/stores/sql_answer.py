"""What a processor that keeps mail in a database does and answers: one way for Sql, MySql and GuerrillaDbRedis."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from structlog.typing import FilteringBoundLogger

from guerrilla.backends.base import CallNext, Process
from guerrilla.backends.hooks import Keeper, Tell
from guerrilla.backends.processor import Processor, end_of_line, is_own
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, STORAGE_NOT_AVAILABLE, Reply, queued
from guerrilla.stores.base import Bodies, MailStore
from guerrilla.stores.sql import SqlStore
from guerrilla.stores.sql_errors import Verdict
from guerrilla.stores.sql_keys import TableKeys
from guerrilla.stores.sql_writer import NotKeptError, SqlWriter

KeysT = TypeVar("KeysT", bound=TableKeys)

# Whatever it is, the sender did not do it: another server, or a mended one, may take the message.
_ANSWERS: Final = {Verdict.REFUSED: LOCAL_ERROR, Verdict.FULL: INSUFFICIENT_STORAGE}


async def keep_and_pass(writer: SqlWriter, envelope: Envelope, call_next: CallNext, log: FilteringBoundLogger) -> Reply:
    """Commit the rows, then pass on; take them back if the rest of the line does not keep the message."""
    try:
        kept = await writer.keep(envelope)
    except NotKeptError as error:
        return _refusal(error, envelope, log)
    stays = False
    try:
        reply = await call_next()
        stays = reply.positive
        return reply
    finally:
        if not stays:
            await kept.take_back()


def _refusal(error: NotKeptError, envelope: Envelope, log: FilteringBoundLogger) -> Reply:
    log.error(error.event, queued_id=envelope.queued_id, cause=str(error))
    return _ANSWERS.get(error.verdict, STORAGE_NOT_AVAILABLE)


class TableProcessor(Processor[KeysT]):
    """A processor that keeps mail in a table and does nothing else: Sql, and MySql."""

    def __init__(self, config: KeysT) -> None:
        super().__init__(config)
        self.writer = SqlWriter(config.settings())

    async def initialize(self) -> None:
        """Connect, and check the table. Raises RuntimeError; a server that is away is logged, and may come later."""
        await self.writer.open(self.log)

    async def shutdown(self) -> None:
        """Finish what is under way and close the database."""
        await self.writer.close()

    def save_mail(self, envelope: Envelope, call_next: CallNext) -> Coroutine[Any, Any, Reply]:
        """Commit the rows, then pass on; take them back if the rest of the line does not keep the message."""
        return keep_and_pass(self.writer, envelope, call_next, self.log)

    def decorate(self, following: Process) -> Process:
        """Stack it on what follows; at the end of the line no worker has to wait for the commit."""
        process = super().decorate(following)
        if following is not end_of_line or is_own(self.save_mail, TableProcessor.save_mail):
            return process
        return Keeper(process, self._begin, self._reply)

    def _begin(self, envelope: Envelope, tell: Tell) -> Callable[[], object]:
        return self.writer.begin(envelope, tell)  # the one that is there by now

    def _reply(self, envelope: Envelope, error: BaseException | None) -> Reply:
        if error is None:
            return queued(envelope.queued_id)
        if isinstance(error, NotKeptError):
            return _refusal(error, envelope, self.log)
        raise error

    def mail_store(self, bodies: Bodies | None = None) -> MailStore:
        """Return the table to be read; ``bodies`` has the octets of rows that say "redis"."""
        settings = self.writer.settings
        return SqlStore(settings.dsn, settings.table, bodies)

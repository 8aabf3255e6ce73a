"""What a processor that keeps mail in a database answers: one way for Sql, MySql and GuerrillaDbRedis."""

from __future__ import annotations

from typing import Final

from structlog.typing import FilteringBoundLogger

from guerrilla.backends.base import CallNext
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, LOCAL_ERROR, STORAGE_NOT_AVAILABLE, Reply
from guerrilla.stores.sql_errors import Verdict
from guerrilla.stores.sql_writer import NotKeptError, SqlWriter

# Whatever it is, the sender did not do it: another server, or a mended one, may take the message.
_ANSWERS: Final = {Verdict.REFUSED: LOCAL_ERROR, Verdict.FULL: INSUFFICIENT_STORAGE}


async def keep_and_pass(writer: SqlWriter, envelope: Envelope, call_next: CallNext, log: FilteringBoundLogger) -> Reply:
    """Commit the rows, then pass on; take them back if the rest of the line does not keep the message."""
    try:
        kept = await writer.keep(envelope)
    except NotKeptError as error:
        log.error(error.event, queued_id=envelope.queued_id, cause=str(error))
        return _ANSWERS.get(error.verdict, STORAGE_NOT_AVAILABLE)
    stays = False
    try:
        reply = await call_next()
        stays = reply.positive
        return reply
    finally:
        if not stays:
            await kept.take_back()

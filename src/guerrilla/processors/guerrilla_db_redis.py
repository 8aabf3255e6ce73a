"""GuerrillaDbRedis: rows in a database, bodies in Redis for a time, as Redis and Sql in one.

This file has the keys and the answers, and decides where a body goes; rows, keys and connections are
`guerrilla.stores`'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from redis.exceptions import AuthenticationError, RedisError, ResponseError

from guerrilla.backends.batch import Batcher, BatchRefusedError
from guerrilla.backends.processor import CallNext, Envelope, Field, Processor, Reply
from guerrilla.stores.base import Bodies, MailStore
from guerrilla.stores.body import body_of
from guerrilla.stores.redis import RedisBodies
from guerrilla.stores.redis_keys import RedisKeys
from guerrilla.stores.sql import SqlStore
from guerrilla.stores.sql_answer import keep_and_pass
from guerrilla.stores.sql_keys import SqlKeys
from guerrilla.stores.sql_writer import SqlWriter

_KEY: Final = "redis"
"""Where the rows' writer looks in ``envelope.values``, and what it finds there, if the body is in Redis."""

_MAX_BATCH: Final = 1 << 24
"""Octets of mail in one round trip to Redis, and in memory for it; a larger message goes alone."""


class GuerrillaDbRedisConfig(SqlKeys, RedisKeys):
    """The keys of GuerrillaDbRedis."""

    redis_sql_batch_timeout: int = Field(
        default=3,
        ge=1,
        le=3600,
        description="How many seconds Redis may take for a body, before it goes into the database instead; less than "
        "gw_save_timeout is meant. No batch waits to be filled.",
    )


class _Copy:
    """One body on its way into Redis, and why Redis refused it."""

    __slots__ = ("envelope", "key", "refusal")

    def __init__(self, envelope: Envelope, key: str) -> None:
        self.envelope = envelope
        self.key = key
        self.refusal: ResponseError | None = None


class GuerrillaDbRedis(Processor[GuerrillaDbRedisConfig]):
    """Keeps the body in Redis for ``redis_expire_seconds``, and one row per recipient in ``mail_table``.

    The body goes under the first of ``hashes``, so list Hasher before it; without, under ``queued_id``, which is set to
    that key. The column ``body`` says "redis" then, and ``mail`` is empty. Whenever Redis is away, refuses, or takes
    longer than ``redis_sql_batch_timeout``, the body goes into ``mail`` as Sql would put it there, and the message is
    kept all the same; one message at a time finds out whether Redis is back, the others do not wait for it. Reads what
    Sql reads, and stores the compressed form if Compressor is listed before it. Sets ``values["redis"]`` as Redis does.

    It answers only when the rows are committed; many messages share a transaction, and a round trip to Redis. A full
    database is answered 452, any other fault of it 451. When the database or a later processor does not keep the
    message, rows and key are taken back. A body is as durable as Redis is, so at the start the log says what the
    server's settings put at risk.
    """

    def __init__(self, config: GuerrillaDbRedisConfig) -> None:
        super().__init__(config)
        self.writer = SqlWriter(config.settings())
        self.bodies = RedisBodies(config.redis_interface)
        self._batcher: Batcher[_Copy] = Batcher(
            self._commit, self._undo, on_error=self._log_undo_error, size=_size, max_size=_MAX_BATCH
        )
        self._is_away = False
        """Whether Redis did not take the body it was given last."""
        self._asking = 0
        """Messages that wait for Redis."""

    async def initialize(self) -> None:
        """Look whether Redis is there, connect to the database and check the table. Either server may come later.

        Raises:
            RuntimeError: if Redis refuses the user, the password or the database, or as ``SqlWriter.open`` does.
        """
        place = self.bodies.place
        try:
            async with asyncio.timeout(self.config.redis_sql_batch_timeout):
                weaknesses = await self.bodies.weaknesses()
        except (AuthenticationError, ResponseError) as error:
            raise RuntimeError(
                f"redis_interface: {place} refuses us: {error}. A URL with the right user, password and database is "
                "meant, as in redis://user:password@host:6379/0."
            ) from error
        except (RedisError, TimeoutError) as error:
            self._set_away(error)
        else:
            if weaknesses:
                text = "this Redis may lose mail that was answered 250"
                self.log.warning(text, place=place, cause="; ".join(weaknesses))
        await self.writer.open(self.log)

    async def shutdown(self) -> None:
        """Finish what is under way, and close the database and the connections to Redis."""
        try:
            await self._batcher.close()
            await self.writer.close()
        finally:
            left = await self.bodies.close()
            if left:
                self.log.error("bodies of mail that was not accepted stay in Redis until they expire", keys=left)

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Store the body, commit the rows, then pass on; take both back if the rest does not keep the message."""
        key = envelope.hashes[0] if envelope.hashes else envelope.queued_id
        # What a Redis earlier in the line has stored has the same key: we store it again, or else it goes.
        envelope.values.pop(_KEY, None)
        in_redis = await self._store_body(envelope, key)
        if in_redis:
            envelope.queued_id = key
            envelope.values[_KEY] = _KEY
        kept = False
        try:
            reply = await keep_and_pass(self.writer, envelope, call_next, self.log)
            kept = reply.positive
        finally:
            # RFC 5321 section 4.2.5: what was not answered 250 must not turn up later. The rows are gone by now, and
            # this is not waited for: our time may be over.
            if in_redis and not kept:
                self.bodies.void([key])
        return reply

    def mail_store(self, bodies: Bodies | None = None) -> MailStore:
        """Return the table to be read; the octets of rows that say "redis" are in our own Redis, not in ``bodies``."""
        settings = self.writer.settings
        return SqlStore(settings.dsn, settings.table, RedisBodies(self.config.redis_interface))

    async def _store_body(self, envelope: Envelope, key: str) -> bool:
        """Return whether Redis has confirmed the body; if not, nothing of it is there, or it is being deleted."""
        if self._is_away and self._asking:
            return False
        copy = _Copy(envelope, key)
        self._asking += 1
        try:
            async with asyncio.timeout(self.config.redis_sql_batch_timeout):
                await self._batcher.add(copy)
            if copy.refusal is not None:
                raise copy.refusal
        except (RedisError, TimeoutError) as error:
            self._set_away(error)
            return False
        finally:
            self._asking -= 1
        if self._is_away:
            self._is_away = False
            self.log.info("Redis is back: bodies go there again", place=self.bodies.place)
        return True

    def _set_away(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            text = "Redis does not take bodies: they go into the database until it does"
            self.log.warning(text, place=self.bodies.place, cause=str(error) or type(error).__name__)

    async def _commit(self, batch: Sequence[_Copy]) -> None:
        """Store the bodies of a batch; one that Redis refuses is told why."""
        bodies = []
        for copy in batch:
            try:
                bodies.append((copy.key, await body_of(copy.envelope)))
            except Exception as error:  # the message's own affair, not the others'
                raise BatchRefusedError("its octets cannot be had") from error
        refusals = await self.bodies.set_many(bodies, self.config.redis_expire_seconds)
        for copy, refusal in zip(batch, refusals, strict=True):
            copy.refusal = refusal

    async def _undo(self, batch: Sequence[_Copy]) -> None:
        self.bodies.void(copy.key for copy in batch)

    def _log_undo_error(self, error: Exception) -> None:
        self.log.error("bodies of mail that was not accepted could not be deleted", cause=str(error))


def _size(copy: _Copy) -> int:
    return len(copy.envelope)

"""Redis: keeps the bodies of messages in a Redis server, for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from redis.exceptions import AuthenticationError, RedisError, ResponseError

from guerrilla.backends.batch import Batcher
from guerrilla.backends.processor import CallNext, Envelope, Processor, Reply
from guerrilla.smtp.replies import STORAGE_NOT_AVAILABLE
from guerrilla.stores.base import Bodies
from guerrilla.stores.body import body_of
from guerrilla.stores.redis import RedisBodies
from guerrilla.stores.redis_keys import RedisKeys

_KEY = "redis"
"""Where Sql looks in ``envelope.values``, as the Go program's does, and what it finds there."""

_MAX_BATCH = 1 << 24
"""Octets of mail in one round trip, and in memory for it; a larger message goes alone."""

_START_SECONDS = 5.0


class RedisConfig(RedisKeys):
    """The keys of Redis."""


class _Copy:
    """One message on its way into Redis, and what has kept it from getting there."""

    __slots__ = ("envelope", "error", "key")

    def __init__(self, envelope: Envelope, key: str) -> None:
        self.envelope = envelope
        self.key = key
        self.error: Exception | None = None


class Redis(Processor[RedisConfig]):
    """Keeps the body of the message in Redis for ``redis_expire_seconds``, octet for octet, once for all recipients.

    Reads ``delivery_header`` and ``data``, or ``values["zlib-compressor"]`` if Compressor is listed before it. The key
    is the first of ``hashes``, so list Hasher before it; without, it is ``queued_id``. Sets ``queued_id`` to that key,
    and ``values["redis"]``: a Sql that is listed later leaves its column `mail` empty and says "redis" in `body`.

    It answers only when Redis has confirmed the SET; many messages share a round trip. When Redis is away or refuses
    (no memory, loading, read only), the answer is 451, until it is back. When a later processor refuses the message,
    fails or runs out of time, the key is deleted again; so it is when the connection is lost before the SET is
    confirmed. What could not be deleted, because Redis or we ended first, expires by itself, and nothing refers to it.

    What is confirmed is as durable as Redis is: with ``appendonly yes`` and ``appendfsync always`` it outlives a power
    cut; with ``appendfsync everysec`` up to two seconds of mail that was answered 250 do not. Redis must not evict
    keys (``maxmemory-policy noeviction``). At the start the log says what the server's settings put at risk.
    """

    def __init__(self, config: RedisConfig) -> None:
        super().__init__(config)
        self.bodies = RedisBodies(config.redis_interface)
        self._batcher: Batcher[_Copy] = Batcher(
            self._commit, self._undo, on_error=self._log_undo_error, size=_size, max_size=_MAX_BATCH
        )

    async def initialize(self) -> None:
        """Look whether Redis is there, and what its settings put at risk. It may be away; mail is answered 451 then.

        Raises:
            RuntimeError: if it refuses the user, the password or the database.
        """
        place = self.bodies.place
        try:
            async with asyncio.timeout(_START_SECONDS):
                weaknesses = await self.bodies.weaknesses()
        except (AuthenticationError, ResponseError) as error:
            raise RuntimeError(
                f"redis_interface: {place} refuses us: {error}. A URL with the right user, password and database is "
                "meant, as in redis://user:password@host:6379/0."
            ) from error
        except (RedisError, TimeoutError) as error:
            self.log.warning("Redis is away: mail is answered 451 until it is back", place=place, cause=_cause(error))
            return
        if weaknesses:
            self.log.warning("this Redis may lose mail that was answered 250", place=place, cause="; ".join(weaknesses))

    async def shutdown(self) -> None:
        """Finish what is under way, in five seconds at most, and close the connections."""
        await self._batcher.close()
        left = await self.bodies.close()
        if left:
            self.log.error("mail that was not accepted could not be deleted: it stays until it expires", keys=left)

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Store the body, then pass on; delete it again if the rest of the line does not keep the message."""
        copy = _Copy(envelope, envelope.hashes[0] if envelope.hashes else envelope.queued_id)
        try:
            await self._batcher.add(copy)
            if copy.error is not None:
                raise copy.error
        except RedisError as error:
            self.log.error("the message was not stored", queued_id=envelope.queued_id, cause=_cause(error))
            return STORAGE_NOT_AVAILABLE
        envelope.queued_id = copy.key
        envelope.values[_KEY] = _KEY
        # RFC 5321 section 4.2.5: what was not answered 250 must not turn up later.
        try:
            reply = await call_next()
            kept = reply.positive
        except BaseException:
            self.bodies.void([copy.key])  # not waited for: our time may be over
            raise
        if not kept:
            await self._take_back(copy.key)
        return reply

    def mail_bodies(self) -> Bodies:
        """Return the bodies, to be read over connections of their own."""
        return RedisBodies(self.config.redis_interface)

    async def _commit(self, batch: Sequence[_Copy]) -> None:
        """Store the bodies of a batch; one that cannot be made, or that Redis refuses, has its own error."""
        bodies = []
        for copy in batch:
            try:
                bodies.append((copy, await body_of(copy.envelope)))
            except Exception as error:  # the message's own affair, not the others'
                copy.error = error
        if not bodies:
            return
        refusals = await self.bodies.set_many(
            [(copy.key, body) for copy, body in bodies], self.config.redis_expire_seconds
        )
        for (copy, _), refusal in zip(bodies, refusals, strict=True):
            copy.error = refusal

    async def _undo(self, batch: Sequence[_Copy]) -> None:
        self.bodies.void(copy.key for copy in batch)

    def _log_undo_error(self, error: Exception) -> None:
        self.log.error("mail that was not accepted could not be deleted", cause=str(error))

    async def _take_back(self, key: str) -> None:
        """Delete the key; when Redis is away, or our time is over, leave it to the background."""
        try:
            await self.bodies.delete([key])
        except BaseException as error:
            self.bodies.void([key])
            if not isinstance(error, RedisError):
                raise


def _size(copy: _Copy) -> int:
    return len(copy.envelope)


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__

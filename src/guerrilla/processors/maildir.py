"""MailDir: keeps mail in the Maildirs of its recipients."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from pydantic import field_validator

from guerrilla.backends.processor import CallNext, Envelope, Field, Processor, ProcessorConfig, Reply
from guerrilla.smtp.replies import INSUFFICIENT_STORAGE, NO_SUCH_USER, STORAGE_NOT_AVAILABLE
from guerrilla.stores.base import Bodies, MailStore
from guerrilla.stores.maildir import Delivery, MaildirStore
from guerrilla.stores.maildir_folder import NoMaildirError, UnknownUserError, unique_name
from guerrilla.stores.maildir_users import Layout, parse_user_map

_THREADS = 16
"""Messages that are written at the same time: fsyncs that overlap share their way to the disk."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

P = ParamSpec("P")
T = TypeVar("T")


class MailDirConfig(ProcessorConfig):
    """The keys of MailDir."""

    maildir_path: str = Field(
        description="The Maildir of a user, such as /home/[user]/Maildir: [user] stands for the name in the address, "
        "in lower case; a leading ~/ for the home folder of the system user of that name."
    )
    maildir_user_map: str = Field(
        default="",
        description="The users, and whose their files are: name=uid:gid,name2=uid:gid. -1 leaves user or group as the "
        "system makes it. Empty: whoever has a Maildir is known.",
    )

    @field_validator("maildir_path")
    @classmethod
    def _check_path(cls, value: str) -> str:
        Layout(value)
        return value

    @field_validator("maildir_user_map")
    @classmethod
    def _check_map(cls, value: str) -> str:
        parse_user_map(value)
        return value


class MailDir(Processor[MailDirConfig]):
    """Keeps the message in the Maildir of each recipient, one file for each, octet for octet and never compressed.

    Reads ``delivery_header``, ``data``, ``rcpt_to``, ``queued_id`` and ``received_at``. The user is the local part; it
    must be in ``maildir_user_map``, if there is one, and its Maildir must be there (``tmp``, ``new`` and ``cur`` in it
    are made). Listed in ``validate_process``, it answers for each recipient whether that is so.

    Who is unknown is answered 550: who is not in the map or, without a map, has no Maildir. That a Maildir is missing
    is an outage, 451, if its user is in the map, or the folder where it should be is missing or empty, as when its disk
    is not mounted.

    A message is kept for all its recipients or for none: if one of them is unknown when it is saved, it is refused with
    550 and nothing is kept. A full disk is answered 452, any other fault 451. When a later processor does not keep
    the message, the files are removed again. Folders below the operator's part of the path may not be links.
    """

    def __init__(self, config: MailDirConfig) -> None:
        super().__init__(config)
        self.layout = Layout(config.maildir_path, parse_user_map(config.maildir_user_map))
        self._host = socket.gethostname()
        self._threads = ThreadPoolExecutor(_THREADS, "maildir")
        self._removals: set[asyncio.Task[None]] = set()

    async def initialize(self) -> None:
        """Remove what earlier runs left half written.

        Raises:
            RuntimeError: if the folder that all Maildirs are in cannot be used.
        """
        try:
            await self._in_thread(self._sweep)
        except OSError as error:
            raise RuntimeError(
                f"maildir_path: {error.filename} cannot be used: {error.strerror}. An existing folder is meant."
            ) from error

    async def shutdown(self) -> None:
        """Finish what is under way."""
        if self._removals:
            await asyncio.wait(self._removals)
        await asyncio.to_thread(self._threads.shutdown)

    async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Refuse a recipient who has no Maildir here; pass on for the others."""
        refusal = await self._in_thread(self._check, envelope.rcpt_to[-1].user)
        return refusal or await call_next()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Write the files, then pass on; take them back if they, or the rest of the line, do not keep the message."""
        delivery = Delivery(
            self.layout,
            [
                (
                    recipient.user,
                    unique_name(envelope.queued_id, number, envelope.received_at, self._host, len(envelope)),
                )
                for number, recipient in enumerate(envelope.rcpt_to)
            ],
        )
        storing = asyncio.create_task(self._in_thread(self._store, delivery, envelope))
        # RFC 5321 section 4.2.5: what was not answered 250 must not turn up later.
        try:
            refusal = await asyncio.shield(storing)
            reply = refusal or await call_next()
            kept = reply.positive
        except BaseException:
            await self._take_back(delivery, storing)
            raise
        if not kept:
            await self._take_back(delivery, storing)
        return reply

    def mail_store(self, bodies: Bodies | None = None) -> MailStore:
        """Return the Maildirs of all users, to be read."""
        return MaildirStore(self.layout)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def _take_back(self, delivery: Delivery, storing: asyncio.Task[Reply | None]) -> None:
        """Remove the files of one message, to the end even if we are cancelled meanwhile."""
        delivery.give_up()
        removal = asyncio.create_task(self._remove(delivery, storing))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.shield(removal)

    async def _remove(self, delivery: Delivery, storing: asyncio.Task[Reply | None]) -> None:
        # A thread cannot be called back. Wait for it, so that nothing is made after we have looked.
        await asyncio.wait((storing,))
        try:
            await self._in_thread(delivery.remove)
        except OSError as error:
            self.log.error("files of mail that was not accepted could not be removed", cause=str(error))

    # From here on: in a thread.

    def _sweep(self) -> None:
        self.layout.check()
        for maildir in self.layout.maildirs():
            try:
                maildir.sweep(self._host)
            except OSError as error:
                self.log.warning("the folder tmp of a Maildir could not be swept", cause=str(error))

    def _check(self, user: str) -> Reply | None:
        try:
            self.layout.of(user).check()
        except UnknownUserError:
            return NO_SUCH_USER
        except (NoMaildirError, OSError) as error:
            self.log.error("a recipient could not be looked up", cause=str(error))
            return STORAGE_NOT_AVAILABLE
        return None

    def _store(self, delivery: Delivery, envelope: Envelope) -> Reply | None:
        try:
            delivery.store(envelope.chunks)
        except UnknownUserError as error:
            self.log.warning("the message was not stored", queued_id=envelope.queued_id, cause=str(error))
            return NO_SUCH_USER
        except (NoMaildirError, OSError) as error:
            self.log.error("the message was not stored", queued_id=envelope.queued_id, cause=str(error))
            full = isinstance(error, OSError) and error.errno in _FULL
            return INSUFFICIENT_STORAGE if full else STORAGE_NOT_AVAILABLE
        return None

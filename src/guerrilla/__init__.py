"""The inbound mail engine: an SMTP daemon, and a package that runs each message down a production line of processors.

import guerrilla

@guerrilla.processor
async def no_bitcoin(envelope: guerrilla.Envelope) -> guerrilla.Reply | None:
return guerrilla.Reply(554, "5.7.1", "No, thank you") if b"bitcoin" in envelope.data[:] else None

daemon = guerrilla.Daemon({"backend_config": {"save_process": "NoBitcoin|HeadersParser|Hasher|Header|Sql"}})
daemon.add_processor("NoBitcoin", no_bitcoin)
daemon.run()
"""

from importlib.metadata import version

from guerrilla.backends.base import Backend, CallNext, Decorator, Process, Task
from guerrilla.backends.batch import Batcher, BatchRefusedError
from guerrilla.backends.processor import Field, Processor, ProcessorConfig, processor, stack
from guerrilla.config import AppConfig, ConfigError, ServerConfig, TLSConfig
from guerrilla.daemon import Daemon, StartError
from guerrilla.envelope import Address, Envelope, Headers
from guerrilla.smtp.replies import (
    NO_SUCH_USER,
    QUOTA_EXCEEDED,
    STORAGE_NOT_AVAILABLE,
    STORAGE_TIMEOUT,
    STORAGE_TOO_BUSY,
    USER_SUSPENDED,
    Reply,
)

__version__ = version("guerrilla")

__all__ = [
    "NO_SUCH_USER",
    "QUOTA_EXCEEDED",
    "STORAGE_NOT_AVAILABLE",
    "STORAGE_TIMEOUT",
    "STORAGE_TOO_BUSY",
    "USER_SUSPENDED",
    "Address",
    "AppConfig",
    "Backend",
    "BatchRefusedError",
    "Batcher",
    "CallNext",
    "ConfigError",
    "Daemon",
    "Decorator",
    "Envelope",
    "Field",
    "Headers",
    "Process",
    "Processor",
    "ProcessorConfig",
    "Reply",
    "ServerConfig",
    "StartError",
    "TLSConfig",
    "Task",
    "__version__",
    "processor",
    "stack",
]

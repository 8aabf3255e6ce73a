"""The keys of the configuration that the processors have in common that keep bodies in Redis."""

from __future__ import annotations

from pydantic import Field, field_validator

from guerrilla.backends.processor import ProcessorConfig
from guerrilla.stores.redis import parse_interface


class RedisKeys(ProcessorConfig):
    """Where Redis is, and how long it keeps what it is given."""

    redis_interface: str = Field(
        repr=False,
        description="Where Redis is: host:port, the path of a Unix socket, or a URL with user, password, database and "
        "options for TLS: redis://, rediss:// or unix://.",
    )
    redis_expire_seconds: int = Field(
        ge=1, le=1_000_000_000, description="How long a body is kept: Redis deletes it after so many seconds."
    )

    @field_validator("redis_interface")
    @classmethod
    def _check_interface(cls, value: str) -> str:
        parse_interface(value)
        return value

"""The configuration of one listening interface: the keys of an entry of ``servers``, and of its ``tls``."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guerrilla.config_problems import refused, shown

_NAME = re.compile(r"[!-~]{1,255}")
_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\x00-\x20\x7f-\U0010ffff]*)):([0-9]{1,5})")


def _hostname() -> str:
    name = socket.gethostname()
    return name if _NAME.fullmatch(name) else "localhost"


LogLevel = Literal["debug", "info", "warning", "error", "fatal", "panic"]


class Section(BaseModel):
    """What all sections have in common: no conversions, no unknown keys, no changes after the fact."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=False)


class CertificateConfig(Section):
    """One more certificate and its key: an entry of ``tls.certificates``."""

    private_key_file: str = Field(description="PEM file with the private key.")
    public_key_file: str = Field(description="PEM file with the certificate and its chain.")


class TLSConfig(Section):
    """The TLS side of a server: key ``tls``."""

    start_tls_on: bool = Field(default=False, description="Offer STARTTLS (RFC 3207).")
    tls_always_on: bool = Field(default=False, description="Speak TLS from the first octet on (RFC 8314).")
    private_key_file: str = Field(default="", description="PEM file with the private key.")
    public_key_file: str = Field(default="", description="PEM file with the certificate and its chain.")
    certificates: list[CertificateConfig] = Field(
        default=[],
        max_length=1000,
        description="Further certificates, for clients that ask for one of their names (SNI); all others get "
        "public_key_file.",
    )
    root_cas_file: str = Field(
        default="", description="PEM file with the authorities that client certificates are checked against."
    )
    client_auth_type: Literal[
        "NoClientCert",
        "RequestClientCert",
        "RequireAnyClientCert",
        "VerifyClientCertIfGiven",
        "RequireAndVerifyClientCert",
    ] = Field(default="NoClientCert", description="Whether clients are asked for a certificate.")
    prefer_server_cipher_suites: bool = Field(
        default=False, description="Choose the cipher by our order and not by the client's."
    )
    protocols: list[Literal["ssl3.0", "tls1.0", "tls1.1", "tls1.2", "tls1.3"]] = Field(
        default=[],
        max_length=2,
        description="Lowest and highest version; empty: tls1.2 and later. The lowest can be ssl3.0, which files of the "
        "Go program have, and is taken for tls1.0.",
    )
    ciphers: list[str] = Field(
        default=[],
        description="Cipher suites up to TLS 1.2, by their IANA or OpenSSL names; empty: the library's choice.",
    )
    curves: list[Literal["P256", "P384", "P521", "X25519"]] = Field(
        default=[],
        description="Curves for the key exchange, the preferred one first; empty, or all: the library's choice. Before "
        "3.15, Python can set one, or leave all.",
    )

    @field_validator("client_auth_type", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return "NoClientCert" if value == "" else value

    @model_validator(mode="after")
    def _agree(self) -> TLSConfig:
        if self.start_tls_on and self.tls_always_on:
            raise refused("both start_tls_on and tls_always_on are true", "meant: one of them")
        if (self.start_tls_on or self.tls_always_on) and not (self.private_key_file and self.public_key_file):
            raise refused("TLS is on, but there is no key", "set both private_key_file and public_key_file")
        if len(self.protocols) == 2 and self.protocols[0] > self.protocols[1]:
            raise refused(f"found protocols {shown(self.protocols)}", "meant: the lowest version, then the highest")
        if self.protocols[1:] == ["ssl3.0"]:
            raise refused(f"found protocols {shown(self.protocols)}", "meant: a highest version that there still is")
        return self


class ServerConfig(Section):
    """One listening interface: an entry of ``servers``."""

    is_enabled: bool = Field(default=True, description="Whether this server is started.")
    host_name: str = Field(
        default_factory=_hostname,
        description="Name in the greeting and in Received; empty or absent: the name of the machine.",
    )
    listen_interface: str = Field(
        description='Address and port to listen on: "127.0.0.1:25", "[::1]:25", or ":25" for all interfaces.',
    )
    max_size: int = Field(default=10485760, ge=1, description="Octets that a message may have, at most.")
    timeout: int = Field(default=30, ge=1, le=86_400, description="Seconds that a client may be silent.")
    max_clients: int = Field(
        default=100, ge=1, le=1_000_000, description="Connections at the same time; the next one gets 421."
    )
    max_clients_per_address: int = Field(
        default=0,
        ge=0,
        description="Connections at the same time from one address; 0: only max_clients holds.",
    )
    max_recipients: int = Field(default=100, ge=1, description="Recipients of one message, at most.")
    min_data_rate: int = Field(
        default=100,
        ge=0,
        le=1_000_000_000,
        description="Octets per second that a client must send in a message, after timeout seconds of grace.",
    )
    bare_newline: Literal["reject", "normalize"] = Field(
        default="reject",
        description="What to do with a message that holds a lone CR or LF: refuse it, or make CRLF of it.",
    )
    log_file: str = Field(default="", description="Log of this server; empty: the log of the daemon.")
    log_level: LogLevel | Literal[""] = Field(
        default="", description="The least important records of this server to keep; empty: as the daemon's."
    )
    xclient_on: bool = Field(
        default=False, description="Let a trusted proxy say by XCLIENT for whom it speaks, as nginx does."
    )
    proxy_on: bool = Field(
        default=False,
        description="Expect a trusted proxy to begin each connection with a PROXY header, version 1 or 2, as HAProxy "
        "does.",
    )
    proxyon: bool = Field(default=False, description="Another name of proxy_on.")
    trusted_proxies: list[str] = Field(
        default=["127.0.0.0/8", "::1/128"],
        description="Networks and addresses whose PROXY and XCLIENT are believed; default: only this machine.",
    )
    tls: TLSConfig = Field(default_factory=TLSConfig, description="Keys, versions and ciphers.")

    @model_validator(mode="before")
    @classmethod
    def _older_samples(cls, values: object) -> object:
        """Take the TLS keys also from where older samples have them: beside the others, not in ``tls``."""
        if not isinstance(values, dict):
            return values
        tls = values.get("tls", {})
        flat = ("start_tls_on", "tls_always_on", "private_key_file", "public_key_file")
        moved = {key: values[key] for key in flat if key in values and isinstance(tls, dict) and key not in tls}
        if not moved:
            return values
        rest = {key: value for key, value in values.items() if key not in moved}
        return {**rest, "tls": {**tls, **moved}}

    @field_validator("host_name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            raise refused(f"found {shown(value)}", "meant: a host name in ASCII, without spaces")
        return value or _hostname()

    @field_validator("listen_interface")
    @classmethod
    def _address(cls, value: str) -> str:
        match = _HOST_AND_PORT.fullmatch(value)
        try:
            if match and match[1]:
                ipaddress.IPv6Address(match[1])
        except ValueError:
            match = None
        if match is None or int(match[3]) > 65535:
            raise refused(f"found {shown(value)}", 'meant: "127.0.0.1:25", "[::1]:25" or ":25"')
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, values: list[str]) -> list[str]:
        for value in values:
            try:
                ipaddress.ip_network(value)
            except ValueError:
                raise refused(f"found {shown(value)}", 'meant: a network such as "10.0.0.0/8", or an address') from None
        return values

    @field_validator("log_level", mode="before")
    @classmethod
    def _level(cls, level: object) -> object:
        return "warning" if level == "warn" else level

    @property
    def behind_proxy(self) -> bool:
        """Whether PROXY headers are expected: ``proxy_on``, or the fork's ``proxyon``."""
        return self.proxy_on or self.proxyon

    @property
    def host(self) -> str:
        """The address to listen on, without brackets; empty for all interfaces."""
        return self.listen_interface.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        """The port to listen on; 0: any free one."""
        return int(self.listen_interface.rpartition(":")[2])

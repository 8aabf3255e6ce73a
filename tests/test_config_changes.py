"""What differs between two configurations is told as events, in order, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from guerrilla.config import AppConfig, parse
from guerrilla.config_changes import changes
from guerrilla.config_problems import Source
from guerrilla.events import Event, ServerChange, ServerTLSChanged

SERVER = {"listen_interface": "127.0.0.1:2525", "host_name": "mx.example.com"}
TLS = {"start_tls_on": True, "private_key_file": "key.pem", "public_key_file": "cert.pem"}


def config(*servers: dict[str, Any], **keys: Any) -> AppConfig:
    return AppConfig.model_validate({"allowed_hosts": ["example.com"], "servers": [*servers] or [SERVER], **keys})


def topics(events: list[Event]) -> list[str]:
    return [event.topic for event in events]


def test_between_equal_configurations_nothing_is_told() -> None:
    assert changes(config(), config()) == []


def test_the_same_keys_from_another_file_are_no_change() -> None:
    text = {"allowed_hosts": ["example.com"], "servers": [SERVER]}
    assert changes(parse(text, source=Source("one.json", {})), parse(text, source=Source("two.json", {}))) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("allowed_hosts", ["example.org"]),
        ("pid_file", "guerrilla.pid"),
        ("log_file", "off"),
        ("log_level", "debug"),
    ],
)
def test_a_key_of_the_configuration_that_changed_is_told_after_the_new_configuration(key: str, value: object) -> None:
    old, new = config(), config(**{key: value})
    events = changes(old, new)
    assert topics(events) == ["config_change:new_config", f"config_change:{key}"]
    assert [(event.before, event.after) for event in events] == [  # type: ignore[attr-defined]
        (old, new),
        (getattr(old, key), value),
    ]


def test_another_backend_is_told_first() -> None:
    events = changes(config(), config(backend_config={"save_process": "Debugger"}))
    assert topics(events) == ["config_change:backend_config", "config_change:new_config"]


def test_a_key_without_a_topic_of_its_own_makes_a_new_configuration() -> None:
    assert topics(changes(config(), config(memory_limit=1000))) == ["config_change:new_config"]


@pytest.mark.parametrize(
    ("key", "value", "topic"),
    [
        ("log_file", "off", "new_log_file"),
        ("timeout", 7, "timeout"),
        ("max_clients", 7, "max_clients"),
        ("tls", TLS, "tls_config"),
    ],
)
def test_a_key_of_a_server_that_changed_is_told_after_the_update_of_the_server(
    key: str, value: object, topic: str
) -> None:
    old, new = config(), config({**SERVER, key: value})
    events = changes(old, new)
    assert topics(events) == ["config_change:new_config", "server_change:update_config", f"server_change:{topic}"]
    last = events[-1]
    assert isinstance(last, ServerChange)
    assert last.server == "127.0.0.1:2525"
    assert (last.old, last.new) == (old.servers[0], new.servers[0])
    assert (last.before, last.after) == (getattr(old.servers[0], key), getattr(new.servers[0], key))


def test_a_key_of_a_server_without_a_topic_of_its_own_is_an_update() -> None:
    events = changes(config(), config({**SERVER, "max_size": 7}))
    assert topics(events) == ["config_change:new_config", "server_change:update_config"]


@pytest.mark.parametrize(("enabled", "topic"), [(True, "start_server"), (False, "stop_server")])
def test_of_a_server_that_was_enabled_or_disabled_nothing_further_is_told(enabled: bool, topic: str) -> None:
    old = config({**SERVER, "is_enabled": not enabled})
    new = config({**SERVER, "is_enabled": enabled, "timeout": 7, "max_clients": 7, "log_file": "off", "tls": TLS})
    events = changes(old, new, renewed=["127.0.0.1:2525"])
    assert topics(events) == [
        "config_change:new_config",
        "server_change:update_config",
        f"server_change:{topic}",
    ]


def test_a_server_that_moved_is_a_new_one_and_a_removed_one() -> None:
    old, new = config(), config({**SERVER, "listen_interface": "127.0.0.1:2526"})
    _, added, removed = changes(old, new)
    assert (added.topic, removed.topic) == ("server_change:new_server", "server_change:remove_server")
    assert isinstance(added, ServerChange)
    assert isinstance(removed, ServerChange)
    assert (added.old, added.new, added.server) == (None, new.servers[0], "127.0.0.1:2526")
    assert (removed.old, removed.new, removed.server) == (old.servers[0], None, "127.0.0.1:2525")
    assert (added.before, added.after) == (None, new.servers[0])


def test_servers_on_any_free_port_are_told_apart_by_their_order() -> None:
    any_port = {**SERVER, "listen_interface": "127.0.0.1:0"}
    old, new = config(any_port, any_port), config(any_port, {**any_port, "timeout": 7}, any_port)
    assert topics(changes(old, new)) == [
        "config_change:new_config",
        "server_change:update_config",
        "server_change:timeout",
        "server_change:new_server",
    ]


def test_certificate_files_that_hold_something_else_are_a_change_of_tls_though_no_key_changed() -> None:
    server = {**SERVER, "tls": TLS}
    other = {**server, "listen_interface": "127.0.0.1:2526"}
    (event,) = changes(config(server, other), config(server, other), renewed={"127.0.0.1:2526"})
    assert isinstance(event, ServerTLSChanged)
    assert (event.server, event.renewed) == ("127.0.0.1:2526", True)


def test_everything_at_once_is_told_in_the_order_of_the_go_program() -> None:
    old = config(
        SERVER,
        {**SERVER, "listen_interface": "127.0.0.1:1"},
        {**SERVER, "listen_interface": "127.0.0.1:2", "is_enabled": False},
    )
    new = config(
        {**SERVER, "listen_interface": "127.0.0.1:3"},
        {**SERVER, "timeout": 7, "max_clients": 7, "log_file": "off", "tls": TLS},
        {**SERVER, "listen_interface": "127.0.0.1:2", "is_enabled": True},
        allowed_hosts=["."],
        pid_file="guerrilla.pid",
        log_file="off",
        log_level="debug",
        backend_config={"save_process": "Debugger"},
    )
    assert topics(changes(old, new)) == [
        "config_change:backend_config",
        "config_change:new_config",
        "config_change:allowed_hosts",
        "config_change:pid_file",
        "config_change:log_file",
        "config_change:log_level",
        "server_change:new_server",
        "server_change:update_config",
        "server_change:new_log_file",
        "server_change:timeout",
        "server_change:max_clients",
        "server_change:tls_config",
        "server_change:update_config",
        "server_change:start_server",
        "server_change:remove_server",
    ]

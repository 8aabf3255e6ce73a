"""Events have the topics of the Go program, are frozen, and a topic that does not exist is told with the one meant."""

from __future__ import annotations

import dataclasses

import pytest

from guerrilla.config import AppConfig
from guerrilla.envelope import Address
from guerrilla.events import (
    EVENTS,
    ConfigChange,
    Event,
    Failed,
    LogLevelChanged,
    MailEvent,
    Queued,
    ServerChange,
    ServerTimeoutChanged,
    of_topic,
)
from guerrilla.smtp.replies import OK

GO_TOPICS = {
    "config_change:new_config",
    "config_change:allowed_hosts",
    "config_change:pid_file",
    "config_change:log_file",
    "config_change:reopen_log_file",
    "config_change:log_level",
    "config_change:backend_config",
    "server_change:new_server",
    "server_change:remove_server",
    "server_change:update_config",
    "server_change:start_server",
    "server_change:stop_server",
    "server_change:new_log_file",
    "server_change:reopen_log_file",
    "server_change:timeout",
    "server_change:max_clients",
    "server_change:tls_config",
}
MAIL_TOPICS = {"mail:connected", "mail:rejected", "mail:queued", "mail:failed", "mail:disconnected"}
QUEUED = Queued(
    server="127.0.0.1:25",
    remote_ip="192.0.2.1",
    queued_id="1",
    sender=Address("a", "example.com"),
    recipients=(Address("b", "example.com"),),
    size=7,
    seconds=0.5,
    reply=OK,
)


def test_the_topics_are_those_of_the_go_program_and_of_mail() -> None:
    assert {event.topic for event in EVENTS} == GO_TOPICS | MAIL_TOPICS
    assert len(EVENTS) == len(GO_TOPICS) + len(MAIL_TOPICS)


@pytest.mark.parametrize("event", EVENTS)
def test_a_topic_leads_to_its_class_and_its_first_word_to_the_class_above(event: type[Event]) -> None:
    assert of_topic(event.topic) is event
    above = {"config_change": ConfigChange, "server_change": ServerChange, "mail": MailEvent}
    assert issubclass(event, above[event.topic.partition(":")[0]])


@pytest.mark.parametrize("event", EVENTS)
def test_the_key_of_an_event_is_a_key_of_the_configuration(event: type[Event]) -> None:
    if issubclass(event, ConfigChange) and event.key:
        assert event.key in AppConfig.model_fields
    elif issubclass(event, ServerChange) and event.key:
        assert event.key in type(AppConfig().servers[0]).model_fields


@pytest.mark.parametrize(
    ("topic", "meant"),
    [
        ("mail:queud", "meant: 'mail:queued'"),
        ("config_change:log_levels", "meant: 'config_change:log_level'"),
        ("", "one of config_change:backend_config, "),
        ("gibberish", "one of config_change:backend_config, "),
    ],
)
def test_a_topic_that_does_not_exist_is_told_with_what_was_meant(topic: str, meant: str) -> None:
    with pytest.raises(ValueError, match="there is no topic") as caught:
        of_topic(topic)
    assert meant in str(caught.value)


def test_an_event_cannot_be_changed_and_holds_no_more_than_its_fields() -> None:
    for name in [field.name for field in dataclasses.fields(Queued)]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(QUEUED, name, None)
    assert not hasattr(QUEUED, "__dict__")


def test_every_event_knows_when_it_happened_and_events_that_tell_the_same_are_equal() -> None:
    again = dataclasses.replace(QUEUED)
    assert again.time.tzinfo is not None
    assert dataclasses.replace(QUEUED, time=QUEUED.time.replace(year=2000)) == QUEUED


def test_a_message_that_was_kept_is_not_equal_to_one_that_was_deferred() -> None:
    values = {field.name: getattr(QUEUED, field.name) for field in dataclasses.fields(Queued)}
    deferred: Event = Failed(**values)
    assert deferred != QUEUED


def test_what_changed_is_told_with_its_values() -> None:
    old, new = AppConfig(log_level="info"), AppConfig(log_level="debug")
    event = LogLevelChanged(old=old, new=new)
    assert (event.before, event.after) == ("info", "debug")


def test_a_server_change_without_any_server_names_none() -> None:
    event = ServerTimeoutChanged()
    assert (event.server, event.before, event.after) == ("", None, None)

"""The configuration: what is accepted, what is refused, and how the refusal reads."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator

from guerrilla.config import (
    EMBEDDED_BACKEND,
    AppConfig,
    ConfigError,
    Duration,
    Problem,
    ServerConfig,
    Source,
    TLSConfig,
    as_config,
    load,
    parse,
    problems_of,
)
from guerrilla.config_source import MAX_OCTETS, read


def written(folder: Path, text: str | bytes, name: str = "goguerrilla.conf.json") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def complaint(path: Path) -> str:
    """Return what ``load`` says of the file, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value).replace(f"{path.parent}/", "")


def refusal(**values: Any) -> str:
    """Return what ``parse`` says of one server with these keys."""
    with pytest.raises(ConfigError) as caught:
        parse({"servers": [{"listen_interface": "127.0.0.1:25", **values}]})
    return str(caught.value)


SAMPLE = """{
    "log_file" : "stderr",
    "log_level" : "info",
    "allowed_hosts": ["guerrillamail.com", "*.sharklasers.com", "[192.0.2.1]"],
    "pid_file" : "/var/run/go-guerrilla.pid",
    "backend_config": {
        "log_received_mails": true,
        "save_workers_size": 1,
        "save_process" : "HeadersParser|Header|Debugger",
        "primary_mail_host" : "mail.example.com",
        "gw_save_timeout" : "30s"
    },
    "servers" : [
        {
            "is_enabled" : true,
            "host_name":"mail.test.com",
            "max_size": 1000000,
            "timeout":180,
            "listen_interface":"127.0.0.1:25",
            "max_clients": 1000,
            "log_file" : "stderr",
            "tls" : {
                "start_tls_on":true,
                "tls_always_on":false,
                "public_key_file":"/path/to/pem/file/test.com.crt",
                "private_key_file":"/path/to/pem/file/test.com.key",
                "protocols" : ["tls1.0", "tls1.2"],
                "curves" : ["P256", "P384", "P521", "X25519"],
                "client_auth_type" : ""
            }
        },
        {
            "is_enabled" : false,
            "listen_interface":"127.0.0.1:465",
            "private_key_file":"a.key",
            "public_key_file":"a.crt",
            "start_tls_on":false,
            "tls_always_on":true
        }
    ]
}
"""


def test_a_configuration_of_the_go_program_loads_unchanged(tmp_path: Path) -> None:
    config = load(written(tmp_path, SAMPLE))
    first, second = config.servers
    assert (first.host, first.port, first.timeout, first.max_clients) == ("127.0.0.1", 25, 180, 1000)
    assert first.tls.start_tls_on
    assert first.tls.client_auth_type == "NoClientCert"
    assert config.backend_config["gw_save_timeout"] == "30s"
    assert config.warnings == ()
    assert config.source is not None
    assert config.source.path.endswith("goguerrilla.conf.json")
    assert second.tls == TLSConfig(tls_always_on=True, private_key_file="a.key", public_key_file="a.crt")


def test_toml_says_the_same_as_json(tmp_path: Path) -> None:
    text = """
log_level = "debug"
[[servers]]
listen_interface = ":25"
[[servers]]
listen_interface = "[::1]:26"
[servers.tls]
tls_always_on = true
private_key_file = "k"
public_key_file = "c"
[backend_config]
save_process = "HeadersParser"
"""
    config = load(written(tmp_path, text, "a.toml"))
    assert [(server.host, server.port) for server in config.servers] == [("", 25), ("::1", 26)]
    assert config.servers[1].tls.tls_always_on
    assert config.backend_config == {"save_process": "HeadersParser"}
    assert config.source is not None
    assert config.source.line("servers[1].tls.public_key_file") == 10
    assert config.source.line("backend_config.save_process") == 12


def test_without_any_key_it_listens_on_loopback_and_keeps_mail_in_the_embedded_store() -> None:
    config = parse({})
    assert [server.listen_interface for server in config.servers] == ["127.0.0.1:2525"]
    assert config.servers[0].is_enabled
    assert config.allowed_hosts == []
    assert config.backend_config == EMBEDDED_BACKEND
    assert config.shutdown_timeout == 60
    assert parse({"servers": []}).servers == config.servers


def test_the_embedded_configuration_takes_mail_for_anybody() -> None:
    config = AppConfig.embedded()
    assert config.allowed_hosts == ["."]
    assert config.source is None
    assert config.servers == parse({}).servers


@pytest.mark.parametrize("count", [0, 257, True, 2.0, "2", None])
def test_a_number_of_processes_that_is_none_is_told_once(count: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"processes": count})
    assert str(caught.value) == (
        f'processes: found {json.dumps(count)}, meant: a whole number from 1 to 256, or "auto"'
    )


def test_what_is_no_configuration_at_all_is_told_what_was_meant() -> None:
    with pytest.raises(TypeError, match=r"found 'guerrilla.toml'; meant: an AppConfig, a mapping .*, or what load"):
        as_config("guerrilla.toml")  # type: ignore[arg-type]


def test_two_configurations_do_not_share_their_backend_config() -> None:
    AppConfig.embedded().backend_config["x"] = 1
    assert "x" not in AppConfig.embedded().backend_config


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError):
        setattr(parse({}), "pid_file", "x")  # noqa: B010


def test_all_errors_are_told_at_once_each_with_its_line_and_what_was_meant(tmp_path: Path) -> None:
    text = """{
  "servers": [
    {"listen_interface": "::1:25", "max_sise": 3, "max_size": 1e6,
     "tls": {"start_tls_on": "yes", "protocols": ["ssl2.0"], "cuves": []}},
    {"max_clients": 0,
     "trusted_proxies": ["10.0.0.1/8"]}
  ],
  "allowed_hosts": "a",
  "shutdown_timeout": 10,
  "Log_level": "x",
  "zzzzzz": null,
  "backend_config": []
}"""
    assert complaint(written(tmp_path, text, "c.json")).split("\n") == [
        'c.json:3: servers[0].listen_interface: found "::1:25", meant: "127.0.0.1:25", "[::1]:25" or ":25"',
        "c.json:3: servers[0].max_size: found 1000000.0, meant: a whole number",
        "c.json:3: servers[0].max_sise: unknown key, did you mean max_size?",
        'c.json:4: servers[0].tls.start_tls_on: found "yes", meant: true or false',
        'c.json:4: servers[0].tls.protocols[0]: found "ssl2.0", '
        "meant: 'ssl3.0', 'tls1.0', 'tls1.1', 'tls1.2' or 'tls1.3'",
        "c.json:4: servers[0].tls.cuves: unknown key, did you mean curves?",
        "c.json:5: servers[1].listen_interface: this key is missing",
        "c.json:5: servers[1].max_clients: found 0, meant: 1 or more",
        'c.json:6: servers[1].trusted_proxies: found "10.0.0.1/8", '
        'meant: a network such as "10.0.0.0/8", or an address',
        'c.json:8: allowed_hosts: found "a", meant: a list, [ … ]',
        'c.json:9: shutdown_timeout: found 10, meant: a duration such as "10s"',
        "c.json:10: Log_level: unknown key, did you mean log_level?",
        "c.json:11: zzzzzz: unknown key",
        "c.json:12: backend_config: found [], meant: an object, { … }",
    ]


def test_what_the_backend_finds_is_told_together_with_the_rest(tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []

    def check(backend: Mapping[str, Any]) -> list[Problem]:
        seen.append(backend)
        return [Problem("backend_config.a", "unknown key", "did you mean b?")]

    path = written(tmp_path, '{"backend_config": {\n"a": 1},\n"max": 2}')
    with pytest.raises(ConfigError) as caught:
        load(path, check)
    assert [problem.place for problem in caught.value.problems] == ["backend_config.a", "max"]
    assert str(caught.value).startswith(f"{path}:2: backend_config.a: unknown key, did you mean b?\n")
    with pytest.raises(ConfigError):
        parse({}, check)
    assert seen == [{"a": 1}, EMBEDDED_BACKEND]


def test_warnings_do_not_stop_anything() -> None:
    config = parse(
        {
            "backend_name": "guerrilla-db-redis",
            "dashboard": {"is_enabled": False},
            "servers": [{"listen_interface": ":25", "is_enabled": False}],
        },
        lambda backend: [Problem("backend_config.x", "nobody reads this key", warning=True)],
    )
    assert [problem.place for problem in config.warnings] == [
        "backend_name",
        "dashboard",
        "servers",
        "backend_config.x",
    ]
    assert str(config.warnings[3]) == "warning: backend_config.x: nobody reads this key"


def test_warnings_and_source_survive_a_copy() -> None:
    config = parse({"backend_name": "x"}, source=Source("f"))
    copy = config.model_copy(update={"pid_file": "p"})
    assert (copy.pid_file, copy.source, copy.warnings) == ("p", config.source, config.warnings)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1m30s", 90), ("300ms", 0.3), ("1.5h", 5400), (".5s", 0.5), ("0", 0), ("5µs", 5e-6), ("2us", 2e-6)],
)
def test_a_go_duration_becomes_seconds(text: str, seconds: float) -> None:
    assert TypeAdapter(Duration).validate_python(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "10", "-1s", "+1s", " 1s", "1s\n", "1m??30s", "٣s", "1d", "1.2.3s", ".s", 10, 1.5, None, True, ["1s"]]
)
def test_what_go_would_not_read_as_a_duration_is_refused(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Duration).validate_python(value)
    assert 'meant: a duration such as "10s"' in str(caught.value.errors()[0]["ctx"]["meant"])


def test_a_duration_longer_than_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="which is too long"):
        parse({"shutdown_timeout": "9" * 400 + "h"})


def test_a_duration_is_written_as_text_in_the_schema_and_in_a_dump() -> None:
    assert AppConfig.model_json_schema()["properties"]["shutdown_timeout"]["type"] == "string"
    assert parse(json.loads(AppConfig.embedded().model_dump_json())) == AppConfig.embedded()


@pytest.mark.parametrize(
    ("interface", "host", "port"),
    [
        ("127.0.0.1:2525", "127.0.0.1", 2525),
        ("[::1]:25", "::1", 25),
        (":0", "", 0),
        ("mx.example.com:65535", "mx.example.com", 65535),
    ],
)
def test_a_listen_interface_has_a_host_and_a_port(interface: str, host: str, port: int) -> None:
    server = ServerConfig(listen_interface=interface)
    assert (server.host, server.port) == (host, port)


@pytest.mark.parametrize(
    "interface",
    ["", "25", "a", "a:", "a:65536", "a:٣", "a:25\n", "a b:25", "[::g]:25", "[1.2.3.4]:25", "::1:25", "a:+5", "ä:25"],
)
def test_a_listen_interface_that_is_none_is_refused(interface: str) -> None:
    assert 'meant: "127.0.0.1:25", "[::1]:25" or ":25"' in refusal(listen_interface=interface)


def test_two_servers_cannot_have_one_interface_but_any_free_port_is_no_interface() -> None:
    twice = [{"listen_interface": "127.0.0.1:25"}] * 2
    with pytest.raises(ConfigError, match="servers: two servers have the listen_interface"):
        parse({"servers": twice})
    assert len(parse({"servers": [{"listen_interface": "127.0.0.1:0"}] * 2}).servers) == 2


def test_the_host_name_is_the_machine_s_when_empty_or_absent() -> None:
    assert ServerConfig(listen_interface=":1", host_name="").host_name == socket.gethostname()
    assert ServerConfig(listen_interface=":1").host_name == socket.gethostname()


def test_a_machine_whose_name_cannot_be_said_in_smtp_is_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "büro 1")
    assert ServerConfig(listen_interface=":1").host_name == "localhost"


@pytest.mark.parametrize("name", ["a b", "bü", "a\r\n250 x", "x" * 256])
def test_a_host_name_that_would_break_the_greeting_is_refused(name: str) -> None:
    assert "meant: a host name" in refusal(host_name=name)


@pytest.mark.parametrize(
    ("tls", "message"),
    [
        ({"start_tls_on": True, "tls_always_on": True}, "both start_tls_on and tls_always_on are true"),
        ({"start_tls_on": True}, "TLS is on, but there is no key, set both private_key_file and public_key_file"),
        ({"tls_always_on": True, "private_key_file": "k"}, "there is no key"),
        ({"protocols": ["tls1.3", "tls1.2"]}, "meant: the lowest version, then the highest"),
        ({"protocols": ["ssl3.0", "ssl3.0"]}, "meant: a highest version that there still is"),
        ({"protocols": ["tls1.2", "tls1.2", "tls1.3"]}, "meant: 2 entries at most"),
        ({"client_auth_type": "Maybe"}, "meant: 'NoClientCert', "),
        ("on", "meant: an object, { … }"),
    ],
)
def test_tls_that_cannot_work_is_refused(tls: object, message: str) -> None:
    assert message in refusal(tls=tls)


def test_a_tls_key_in_both_places_is_not_silently_ignored() -> None:
    text = refusal(private_key_file="a", tls={"private_key_file": "b"})
    assert text == "servers[0].private_key_file: unknown key"


@pytest.mark.parametrize("hosts", [[""], ["a b"], ["a\n"]])
def test_an_allowed_host_that_is_no_domain_is_refused(hosts: list[str]) -> None:
    with pytest.raises(ConfigError, match="meant: the name of a domain"):
        parse({"allowed_hosts": hosts})


def test_the_go_program_s_other_name_of_warning_is_known() -> None:
    assert parse({"log_level": "warn"}).log_level == "warning"


def test_servers_that_are_no_objects_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'servers\[0\]: found "x", meant: an object'):
        parse({"servers": ["x"]})


def test_what_a_processor_s_own_check_says_is_passed_on() -> None:
    class Own(BaseModel):
        model_config = ConfigDict(strict=True)
        table: str = "a"

        @field_validator("table")
        @classmethod
        def _check(cls, value: str) -> str:
            raise ValueError("letters are meant")

    with pytest.raises(ValidationError) as caught:
        Own(table="1" * 100)
    (problem,) = problems_of(caught.value, Own, "backend_config")
    assert problem == Problem("backend_config.table", 'found "' + "1" * 56 + "...", "letters are meant")


def test_a_value_that_json_does_not_know_is_shown_as_python_writes_it() -> None:
    with pytest.raises(ConfigError, match=r"pid_file: found \{1\}, meant: text"):
        parse({"pid_file": {1}})


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: the file is empty"),
        ("[]", "the file is not one JSON object, meant: { … }"),
        ("{\n", "line 2, column 1: the file ends in the middle: '}' is missing"),
        ('{"a": 1', "line 1, column 8: the file ends in the middle: '}' is missing"),
        ('{"a": [1', "line 1, column 9: the file ends in the middle: ']' is missing"),
        ('{"a": [', "line 1, column 8: the file ends in the middle: a value is missing"),
        ('{"a": 1,}', "line 1, column 9: there is a comma after the last entry"),
        ('{"a": [1,]}', "line 1, column 10: there is a comma after the last entry"),
        ('{"a": 1\n "b": 2}', "line 2, column 2: a comma is missing before '\"', or '}'"),
        ("{a: 1}", "line 1, column 2: a key is missing: it stands between double quotes"),
        ('{"a" 1}', 'line 1, column 6: a colon is missing after the key "a"'),
        ('{"a": }', "line 1, column 7: a value is missing before '}'"),
        ('{"a": x}', "line 1, column 7: found 'x' for a value"),
        ('{"a": True}', "line 1, column 7: found 'T' for a value"),
        ('{"a": tru}', "line 1, column 7: a value is missing or misspelt: text stands between double quotes"),
        ("{\"a\": 'x'}", 'line 1, column 7: text stands between double quotes, "like this"'),
        ('{"a": "x', "line 1, column 7: the closing double quote of this text is missing"),
        ('{"a": "x\n"}', "line 1, column 9: a control character in a text: is its closing double quote missing?"),
        ('{"a": "\\ud800"}', "line 1, column 7: the text holds half of a \\u surrogate pair"),
        ('{"a": "\\x"}', "line 1, column 8: Invalid \\escape"),
        ('{"a": NaN}', "line 1, column 7: NaN is not a number in JSON"),
        ('{"a": -Infinity}', "line 1, column 7: -Infinity is not a number in JSON"),
        ('{"a": 1e999}', "line 1, column 7: the number is too large"),
        ('{"a": ' + "9" * 5000 + "}", "line 1, column 7: the number is too large"),
        ("{\n // x\n}", "line 2, column 2: JSON has no comments; use a .toml file for that"),
        ("{} {}", "line 1, column 4: something follows after the end of the configuration"),
        ('{"a": ' + "[" * 5000, "line 1, column 107: objects and lists are nested too deep"),
    ],
)
def test_a_fault_of_json_is_told_in_plain_words_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(written(tmp_path, text, "c.json")).startswith(f"c.json: {message}")


def test_a_key_that_stands_twice_is_an_error_at_its_first_place(tmp_path: Path) -> None:
    text = '{"log_level": "info",\n"servers": [{"timeout": 1,\n "timeout": 2}],\n"log_level": "info"}'
    assert complaint(written(tmp_path, text, "c.json")).split("\n") == [
        "c.json:2: servers[0].timeout: stands here a second time on line 3, keep one of them",
        "c.json:1: log_level: stands here a second time on line 4, keep one of them",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = \n", "a.toml: line 1, column 5: Invalid value"),
        ("a = '", "a.toml: "),
        ("a = 1\na = 2", "a.toml: "),
        (
            "[a]\nb = [{c = inf}, nan]",
            "a.toml:2: a.b[0].c: found inf, meant: a number\na.toml:2: a.b[1]: found nan, meant: a number",
        ),
        ("a = " + "[" * 5000, "a.toml: tables are nested too deep"),
        ("a = " + "9" * 5000, "a.toml: tables are nested too deep, or a number is too large"),
    ],
)
def test_a_fault_of_toml_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(written(tmp_path, text, "a.toml")).startswith(message)


def test_a_file_that_cannot_be_read_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.json") == "none.json: there is no such file"
    assert complaint(tmp_path) == f"{tmp_path.name}: this is a folder, meant: a file".replace(f"{tmp_path.parent}/", "")
    assert (
        complaint(written(tmp_path, b'{\n"a": "\xff"}', "c.json"))
        == "c.json: line 2 is not UTF-8 text, meant: a text file"
    )
    assert "cannot be read: Not a directory" in complaint(written(tmp_path, "{}", "f") / "x")
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        load("a\0b")


def test_a_device_given_by_mistake_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, MAX_OCTETS + 1)
    assert complaint(path) == "large: is larger than 16 MiB, meant: a configuration file"


def test_the_byte_order_mark_of_an_editor_is_passed_over(tmp_path: Path) -> None:
    assert load(written(tmp_path, b'\xef\xbb\xbf{"pid_file": "x"}')).pid_file == "x"


def test_the_line_of_a_place_that_is_unknown_is_that_of_what_is_around_it() -> None:
    source = Source("f", {"a": 1, "a.b[2]": 5})
    assert [source.line(place) for place in ("a.b[2].c.d", "a.b[1]", "x", "")] == [5, 1, None, None]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(st.dictionaries(st.text(), json_values), st.sampled_from([None, 1, "\t"]))
def test_the_reader_reads_json_as_the_standard_library_does(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], indent: int | str | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(values, indent=indent))
    assert read(path)[0] == values


@given(st.text(alphabet='{}[]:,"\\ \n01-.eEtrufalsn', max_size=40).map(lambda text: "{" + text))
def test_the_reader_refuses_exactly_what_the_standard_library_refuses(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    path = written(tmp_path_factory.mktemp("json"), text, "a.json")
    try:
        expected = json.loads(text, object_pairs_hook=distinct)
        json.dumps(expected, allow_nan=False)
    except ValueError:
        with pytest.raises(ConfigError):
            read(path)
    else:
        assert read(path)[0] == expected


@given(st.binary(max_size=60), st.sampled_from(["a.json", "a.toml"]))
def test_no_file_whatever_makes_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, octets: bytes, name: str
) -> None:
    with contextlib.suppress(ConfigError):
        load(written(tmp_path_factory.mktemp("junk"), octets, name))

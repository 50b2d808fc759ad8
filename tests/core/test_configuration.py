"""What a configuration means, and what is said about one that means nothing."""

import enum
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from jsonschema import Draft202012Validator
from msgspec import Meta, Struct, field

from moorage._configuration import (
    Configuration,
    ConfigurationError,
    Duration,
    LoadedConfiguration,
    configuration_schema,
    load_configuration,
)
from moorage._document import inspected, json_schema
from moorage._patterns import Regex

Load = Callable[..., LoadedConfiguration]

MINIMAL = "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv}}\n"

DEVELOPMENT = """
version: 0.1
log:
  accesslog:
    disabled: true
  level: debug
  formatter: text
  fields:
    service: registry
    environment: development
  hooks:
    - type: mail
      disabled: true
      levels: [panic]
      options:
        smtp: {addr: "mail.example.com:25", username: mailuser, password: password, insecure: true}
        from: sender@example.com
        to: [errors@example.com]
storage:
  delete:
    enabled: true
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
    maxthreads: 100
  tag:
    concurrencylimit: 5
http:
  addr: :5000
  debug:
    addr: :5001
    prometheus:
      enabled: true
      path: /metrics
  headers:
    X-Content-Type-Options: [nosniff]
redis:
  addrs: [localhost:6379]
  db: 0
  dialtimeout: 10ms
  readtimeout: 10ms
  writetimeout: 10ms
  maxidleconns: 16
  poolsize: 64
  connmaxidletime: 300s
  tls:
    enabled: false
notifications:
  events:
    includereferences: true
  endpoints:
    - name: local-5003
      url: http://localhost:5003/callback
      headers:
        Authorization: [Bearer an-example-token]
      timeout: 1s
      threshold: 10
      backoff: 1s
      disabled: true
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
"""

FULL = """
version: "0.1"
loglevel: warn
log: {level: info, formatter: json, reportcaller: true}
storage:
  s3:
    accesskey: canary-access
    secretkey: canary-secret
    region: us-west-1
    bucket: content
    credentials: {clientid: canary-client, deeper: [canary-deeper]}
  delete: {enabled: false}
  redirect: {disable: false}
  cache: {blobdescriptor: redis, blobdescriptorsize: 10000}
  maintenance:
    uploadpurging: {enabled: true, age: 168h, interval: 24h, dryrun: false}
    readonly: {enabled: false}
auth: none
middleware:
  registry: [{name: first, disabled: true, options: {}}]
  storage: [{name: cloudfront, options: {baseurl: https://cdn.example.com/, privatekey: /pem, keypairid: canary-pair}}]
http:
  addr: localhost:5000
  net: tcp
  prefix: /my/
  host: https://registry.example.com:5000
  secret: canary-signing
  relativeurls: false
  draintimeout: 60s
  trustedproxies: [10.0.0.0/8, "::1"]
  headers: {X-Frame-Options: [DENY]}
  http2: {disabled: false}
  h2c: {enabled: false}
  tls: {minimumtls: tls1.2, ciphersuites: [TLS_AES_128_GCM_SHA256]}
notifications:
  endpoints:
    - name: alistener
      url: https://user:canary-user@listener.example.com/event?sig=canary-query
      headers: {Authorization: [canary-header], X-Other: [canary-other]}
      timeout: 1s
      ignoredmediatypes: [application/octet-stream]
      ignore: {mediatypes: [application/octet-stream], actions: [pull]}
redis:
  addrs: ["localhost:6379"]
  password: canary-redis
  sentinelpassword: canary-sentinel
  readtimeout: -1
  tls: {certificate: /c.pem, key: /k.pem, rootcas: [/ca.pem]}
health:
  file: [{file: /tmp/down, interval: 10s}]
  http: [{uri: http://server/check, headers: {Authorization: [canary-health]}, statuscode: 200, timeout: 3s}]
  tcp: [{addr: "redis:6379", timeout: 3s, interval: 10s, threshold: 3}]
catalog: {maxentries: 500}
tags: {maxtags: 200}
proxy: {username: someone, password: canary-proxy, ttl: 168h, exec: {command: helper, lifetime: 1h}}
validation:
  disabled: false
  manifests:
    urls: {allow: ["^https?://"], deny: [internal]}
    indexes: {platforms: List, platformlist: [{os: linux, architecture: amd64}]}
policy: {repository: {classes: [image, plugin]}}
plugins:
  token: {api-token: canary-plugin, limit: 5}
  other: {apiKey: canary-key, url: "ftp://me:canary-ftp@host/x"}
workers: 2
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a configuration from text, with the sources that errors name kept short."""

    def load_text(text: str, environ: Mapping[str, str] | None = None, **options: object) -> LoadedConfiguration:
        path = tmp_path / "config.yml"
        path.write_text(text, encoding="utf-8")
        try:
            loaded = load_configuration(path, environ or {}, **options)  # type: ignore[arg-type]  # as each test needs
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace(str(path), "config.yml")) from None
        warnings = tuple(warning.replace(str(path), "config.yml") for warning in loaded.warnings)
        return LoadedConfiguration(configuration=loaded.configuration, warnings=warnings)

    return load_text


def named(configuration: Configuration) -> dict[str, dict[str, object]]:
    """Return what is written for each plugin."""
    return {
        name: cast("dict[str, object]", configuration.section(f"plugins.{name}"))
        for name in configuration.named_plugins
    }


def refused(load: Load, text: str, environ: Mapping[str, str] | None = None, **options: object) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load(text, environ, **options)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def with_storage(text: str) -> str:
    return f"version: 0.1\nstorage: inmemory\n{text}\n"


# Defaults and their order


def test_without_a_file_content_lies_in_data_and_may_be_deleted_from_this_machine_only() -> None:
    configuration = load_configuration(None, {}).configuration
    assert configuration.version == "0.1"
    assert configuration.storage.driver == "filesystem"
    assert configuration.storage.parameters == {"rootdirectory": "./data"}
    assert configuration.storage.delete_enabled
    assert configuration.http.addr == "127.0.0.1:5000"
    assert configuration.auth.types == ()
    assert configuration.workers is None


def test_with_a_file_the_defaults_are_those_of_distribution(load: Load) -> None:
    loaded = load("version: 0.1\nstorage: {filesystem: }\n")
    configuration = loaded.configuration
    assert loaded.warnings == ()
    assert configuration.storage.parameters == {"rootdirectory": "/var/lib/registry"}
    assert not configuration.storage.delete_enabled
    assert not configuration.storage.read_only
    assert configuration.storage.tag_concurrency == 0
    assert configuration.storage.upload_purging.enabled
    assert configuration.storage.upload_purging.age == 168 * 3600
    assert configuration.storage.upload_purging.interval == 24 * 3600
    assert not configuration.storage.upload_purging.dry_run
    assert configuration.http.addr == ":5000"
    assert configuration.http.net == "tcp"
    assert configuration.http.relative_urls is None
    assert configuration.http.drain_timeout == 30
    assert configuration.log.level == "info"
    assert configuration.log.formatter is None
    assert configuration.catalog.max_entries == 1000
    assert configuration.tags.max_tags == 1000


def test_the_command_line_wins_over_the_environment_and_that_over_the_file_and_that_over_defaults(load: Load) -> None:
    text = "version: 0.1\nstorage: inmemory\nhttp: {addr: ':2', prefix: /file/, host: http://file}\n"
    configuration = load(
        text,
        {"REGISTRY_HTTP_ADDR": ":3", "REGISTRY_HTTP_PREFIX": "/environment/"},
        defaults={"http": {"addr": ":1", "secret": "default", "host": "http://default"}},
        overrides={"http.addr": ":4"},
    ).configuration
    assert configuration.http.addr == ":4"
    assert configuration.http.prefix == "/environment/"
    assert configuration.http.host == "http://file"
    assert configuration.http.secret == "default"


def test_defaults_of_the_command_line_replace_the_built_in_ones() -> None:
    configuration = load_configuration(
        None, {}, defaults={"storage": {"filesystem": {"rootdirectory": Path("/srv")}}, "http": {"addr": ":5000"}}
    ).configuration
    assert configuration.storage.parameters == {"rootdirectory": "/srv"}
    assert configuration.storage.delete_enabled
    assert configuration.http.addr == ":5000"


@pytest.mark.parametrize("driver", ["inmemory", {"inmemory": {}}])
def test_a_default_driver_gives_way_to_one_that_is_named(driver: object) -> None:
    by_default = load_configuration(None, {}, defaults={"storage": driver}).configuration
    assert by_default.storage.driver == "inmemory"
    assert by_default.storage.delete_enabled
    by_environment = load_configuration(
        None, {"REGISTRY_STORAGE_S3_BUCKET": "content"}, defaults={"storage": driver}
    ).configuration
    assert by_environment.storage.driver == "s3"
    assert by_environment.storage.parameters == {"bucket": "content"}
    assert by_environment.storage.delete_enabled


def test_a_wrong_override_is_blamed_on_the_command_line(load: Load) -> None:
    assert refused(load, MINIMAL, overrides={"workers": 0}) == (
        "command line: workers: found 0; allowed is a whole number at least 1"
    )
    assert refused(load, MINIMAL, overrides={"storage.s3.bucket": "x"}) == (
        'config.yml: storage: names the drivers "filesystem" and "s3" (command line); allowed is exactly one'
    )


def test_an_override_of_the_storage_replaces_it_as_a_whole(load: Load) -> None:
    storage = load(MINIMAL, overrides={"storage": "inmemory"}).configuration.storage
    assert (storage.driver, storage.parameters) == ("inmemory", {})


def test_a_flag_that_was_not_given_changes_nothing(load: Load) -> None:
    assert load(MINIMAL, overrides={"http.addr": None}).configuration.http.addr == ":5000"


def test_a_configuration_travels_to_another_process(load: Load) -> None:
    configuration = load(with_storage("http: {secret: 0123}\nplugins: {limits: {name: 007}}")).configuration
    arrived = pickle.loads(pickle.dumps(configuration))
    assert arrived.http == configuration.http
    assert arrived.decode("plugins.limits", Limits).name == "007"


# Values


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("100ms", 0.1),
        ("1m1s1ms", 61.001),
        (".5s", 0.5),
        ("+2us", 2e-6),
        ("3\u00b5s", 3e-6),
        ("4\u03bcs", 4e-6),
        ("5ns", 5e-9),
        ("0", 0),
        ("'0'", 0),
        ("1000000000", 1),
        ("1_000_000_000", 1),
    ],
)
def test_durations_are_written_as_in_go(load: Load, written: str, seconds: float) -> None:
    assert load(with_storage(f"http: {{draintimeout: {written}}}")).configuration.http.drain_timeout == seconds


@pytest.mark.parametrize(
    "written",
    ["'5'", "1x", "-1s", "1h-1m", "s", ".s", "1 h", "''", "true", "1.5", "[1s]", "{}", "9999999999h", "\u0661s"],
)
def test_what_is_no_duration_is_refused(load: Load, written: str) -> None:
    assert refused(load, with_storage(f"http: {{draintimeout: {written}}}")).startswith(
        "config.yml: http.draintimeout: found "
    )


@pytest.mark.parametrize("written", ["0.1", "'0.1'"])
def test_the_version_is_a_number_or_text(load: Load, written: str) -> None:
    assert load(f"version: {written}\nstorage: inmemory").configuration.version == "0.1"


def test_text_is_taken_as_it_was_written(load: Load) -> None:
    http = load(with_storage("http: {secret: 0123, prefix: yes, addr: 22:22}")).configuration.http
    assert (http.secret, http.prefix, http.addr) == ("0123", "yes", "22:22")


def test_yaml_reads_as_in_distribution(load: Load) -> None:
    text = with_storage(
        "plugins: {p: {a: 0x10, b: 010, c: on, d: 2024-01-01, e: 1:30, f: 1e3, g: ~, h: '1', i: 1_000, on: =}}"
    )
    assert named(load(text).configuration)["p"] == {
        "a": 16,
        "b": 8,
        "c": True,
        "d": "2024-01-01",
        "e": "1:30",
        "f": 1000.0,
        "g": None,
        "h": "1",
        "i": 1000,
        "on": "=",
    }


def test_tags_of_yaml_itself_are_understood(load: Load) -> None:
    text = with_storage(
        "plugins: {p: !!map {a: !!str 1, b: !!int 2, c: !!seq [!!null ''], d: !!bool on, e: !!float 1.5}}"
    )
    assert named(load(text.replace("''", "~")).configuration)["p"] == {
        "a": "1",
        "b": 2,
        "c": [None],
        "d": True,
        "e": 1.5,
    }
    assert "a tag that is not supported here" in refused(load, with_storage("plugins: {p: {a: !!int x}}"))


def test_numbers_that_are_none_stay_text(load: Load) -> None:
    text = with_storage("plugins: {p: {a: 0x_, b: 123456789012345678901234567890, c: .inf, d: 1.2.3}}")
    plugin = named(load(text).configuration)["p"]
    assert plugin == {"a": "0x_", "b": 123456789012345678901234567890.0, "c": ".inf", "d": "1.2.3"}


def test_a_key_may_have_an_anchor(load: Load) -> None:
    assert named(load(with_storage("plugins: {&a name: {x: *a}}")).configuration) == {"name": {"x": "name"}}


def test_anchors_and_merge_keys_work(load: Load) -> None:
    text = with_storage("plugins: {one: &one {a: 1, b: 2}, two: {<<: *one, b: 3}, three: *one}")
    assert named(load(text).configuration) == {
        "one": {"a": 1, "b": 2},
        "two": {"a": 1, "b": 3},
        "three": {"a": 1, "b": 2},
    }


def test_one_section_does_not_change_with_another_that_shares_its_anchor(load: Load) -> None:
    text = with_storage("plugins: {one: &one {a: 1}, two: *one}")
    assert named(load(text, {"REGISTRY_PLUGINS_TWO_A": "2"}).configuration) == {"one": {"a": 1}, "two": {"a": 2}}


def test_a_key_without_a_value_is_a_key_that_was_not_given(load: Load) -> None:
    configuration = load(
        "version: 0.1\nstorage: {inmemory: , delete: , maintenance: {readonly: }}\nhttp: {addr: , tls: }\nlog:\n"
    )
    assert configuration.configuration.http.addr == ":5000"


def test_page_limits_fall_back_to_a_thousand(load: Load) -> None:
    configuration = load(with_storage("catalog: {maxentries: -5}\ntags: {maxtags: 0}")).configuration
    assert (configuration.catalog.max_entries, configuration.tags.max_tags) == (1000, 1000)


def test_the_old_name_of_the_log_level_is_used_when_the_new_one_is_not_given(load: Load) -> None:
    loaded = load(with_storage("loglevel: WARN"))
    assert loaded.configuration.log.level == "warn"
    assert loaded.warnings == ("config.yml: loglevel: an old name; write log.level instead",)
    assert load(with_storage("loglevel: warn\nlog: {level: Debug}")).configuration.log.level == "debug"


def test_trusted_proxies_are_networks(load: Load) -> None:
    http = load(with_storage("http: {trustedproxies: [10.1.2.3/8, 192.0.2.1, '::1']}")).configuration.http
    assert http.trusted_proxies == ("10.0.0.0/8", "192.0.2.1/32", "::1/128")
    assert [network.num_addresses for network in http.trusted_networks] == [1 << 24, 1, 1]


def test_all_that_holds_for_any_driver_is_read(load: Load) -> None:
    storage = load(
        "version: 0.1\nstorage: {s3: {bucket: b}, delete: {enabled: true}, redirect: {disable: true}, tag: {concurrencylimit: 3},"
        " maintenance: {uploadpurging: {enabled: false, age: 1h, interval: 1m, dryrun: true}, readonly: {enabled: true}}}"
    ).configuration.storage
    assert (storage.driver, storage.parameters) == ("s3", {"bucket": "b"})
    assert (storage.delete_enabled, storage.redirect_disable, storage.tag_concurrency) == (True, True, 3)
    assert storage.read_only
    purging = storage.upload_purging
    assert (purging.enabled, purging.age, purging.interval, purging.dry_run) == (False, 3600, 60, True)


# Sentences


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "config.yml: version: missing; 0.1 is required"),
        ("version: 0.2", 'config.yml: version: found 0.2; allowed is 0.1'),
        ("version: 0.1", 'config.yml: storage: names no driver; allowed is exactly one, such as filesystem or inmemory'),
        ("[1, 2]", "config.yml: found a list; allowed is a mapping"),
        ("just text", "config.yml: found text; allowed is a mapping"),
        ("a: 1\na: 2", 'config.yml: the key "a" is given twice (line 2, column 1)'),
        ("a: {b: 1, b: 2}", 'config.yml: the key "b" is given twice (line 1, column 11)'),
        ("a: 1\n---\nb: 2", "config.yml: holds more than one YAML document"),
        ("a: &a [*a]", "config.yml: an alias comes before the end of what it stands for (line 1, column 8)"),
        ("a: *nothing", "config.yml: an alias comes before the end of what it stands for (line 1, column 4)"),
        ("a: !!python/object:os.system x", "config.yml: a tag that is not supported here (line 1, column 4)"),
        ("a: !!binary aGVsbG8=", "config.yml: a tag that is not supported here (line 1, column 4)"),
        ("a: !!set {x}", "config.yml: a tag that is not supported here (line 1, column 4)"),
        ("? [a]\n: b", "config.yml: a key is neither text nor a number (line 1, column 3)"),
        ("<<: 1", 'config.yml: "<<" takes mappings only (line 1, column 1)'),
        (with_storage("htp: {}"), 'config.yml: htp: unknown key; did you mean "http"?'),
        (with_storage("http: {Addr: x}"), 'config.yml: http.Addr: unknown key; did you mean "addr"?'),
        (with_storage("http: {debug: {promtheus: {}}}"), 'config.yml: http.debug.promtheus: unknown key; did you mean "prometheus"?'),
        (with_storage("catalog: {zzz: 1}"), "config.yml: catalog.zzz: unknown key; known here: maxentries"),
        (with_storage('catalog: {"z\\nz": 1}'), 'config.yml: catalog."z\\nz": unknown key; known here: maxentries'),
        (with_storage("log: {level: loud}"), 'config.yml: log.level: found "loud"; allowed is "debug", "error", "info" or "warn"'),
        (with_storage("loglevel: trace"), 'config.yml: loglevel: found "trace"; allowed is "debug", "error", "info" or "warn"'),
        (with_storage("log: {formatter: xml}"), 'config.yml: log.formatter: found "xml"; allowed is "json", "logstash" or "text"'),
        (with_storage("log: verbose"), "config.yml: log: found text; allowed is a mapping"),
        (with_storage("http: {relativeurls: maybe}"), 'config.yml: http.relativeurls: found "maybe"; allowed is true or false'),
        (with_storage("http: {addr: [':5000']}"), "config.yml: http.addr: found a list; allowed is text"),
        (with_storage("http: {net: udp}"), 'config.yml: http.net: found "udp"; allowed is "tcp" or "unix"'),
        (with_storage("http: {host: registry}"), 'config.yml: http.host: found "registry"; allowed is an http or https URL'),
        (with_storage("http: {host: 'http://['}"), 'config.yml: http.host: found "http://["; allowed is an http or https URL'),
        (with_storage("http: {headers: {X-A: b}}"), "config.yml: http.headers.X-A: found text; allowed is a list"),
        (with_storage("http: {headers: {'X A': [b]}}"), 'config.yml: http: headers has "X A"; allowed are names of HTTP headers'),
        (with_storage('http: {headers: {X-A: ["b\\r\\nc"]}}'), 'config.yml: http.headers.X-A[0]: found "b\\r\\nc"; allowed is text on one line'),
        (with_storage("http: {trustedproxies: [10.0.0.0/40]}"), 'config.yml: http.trustedproxies[0]: found "10.0.0.0/40"; allowed is an IP address or a network such as 10.0.0.0/8'),
        (with_storage("http: {draintimeout: soon}"), 'config.yml: http.draintimeout: found "soon"; allowed is a duration such as "1h30m", "1.5s" or "100ms", or a whole number of nanoseconds'),
        (with_storage("http: {draintimeout: -1s}"), 'config.yml: http.draintimeout: found "-1s"; allowed is a duration such as "1h30m", "1.5s" or "100ms", or a whole number of nanoseconds, and not negative'),
        (with_storage("tags: {maxtags: -1}"), "config.yml: tags.maxtags: found -1; allowed is a whole number at least 0"),
        (with_storage("catalog: {maxentries: many}"), 'config.yml: catalog.maxentries: found "many"; allowed is a whole number'),
        (with_storage("catalog: {maxentries: 1.5}"), "config.yml: catalog.maxentries: found 1.5; allowed is a whole number"),
        (with_storage("workers: 0"), "config.yml: workers: found 0; allowed is a whole number at least 1"),
        (with_storage("workers: '2'"), 'config.yml: workers: found "2"; allowed is a whole number at least 1'),
        (with_storage("plugins: {a: 1}"), "config.yml: plugins.a: found a number; allowed is a mapping"),
        (with_storage("middleware: {storage: [{options: {}}]}"), "config.yml: middleware.storage[0].name: missing; text is required"),
        (with_storage("notifications: {endpoints: [{}, {url: {}}]}"), "config.yml: notifications.endpoints[1].url: found a mapping; allowed is text"),
        ("version: 0.1\nstorage: {filesystem: /srv}", "config.yml: storage.filesystem: found text; allowed is a mapping"),
        ("version: 0.1\nstorage: [filesystem]", "config.yml: storage: found a list; allowed is a mapping"),
        ("version: 0.1\nstorage: {inmemory: , delete: {enabled: 1}}", "config.yml: storage.delete.enabled: found 1; allowed is true or false"),
        ("version: 0.1\nstorage: {inmemory: , delete: {enable: on}}", 'config.yml: storage.delete.enable: unknown key; did you mean "enabled"?'),
        ("version: 0.1\nstorage: {inmemory: , tag: {concurrencylimit: -1}}", "config.yml: storage.tag.concurrencylimit: found -1; allowed is a whole number at least 0"),
        ("version: 0.1\nstorage: {filesystem: {}, s3: {}}", 'config.yml: storage: names the drivers "filesystem" and "s3"; allowed is exactly one'),
        ("version: 0.1\nstorage: {filesystem: {}, delte: {enabled: true}}", 'config.yml: storage: names the drivers "filesystem" and "delte"; allowed is exactly one; by "delte", did you mean "delete"?'),
        (with_storage("auth: {none: {}, token: {}}"), 'config.yml: auth: names "none" and "token"; none, an open registry, stands alone'),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_one_sentence(load: Load, text: str, sentence: str) -> None:
    assert refused(load, text) == sentence


def test_broken_yaml_is_answered_with_its_place_and_without_its_text(load: Load) -> None:
    sentence = refused(load, "http:\n  secret: canary\n password: [canary\n")
    assert sentence.startswith("config.yml: not valid YAML: ")
    assert "(line 3, column " in sentence
    assert "canary" not in sentence


def test_a_file_that_is_none_is_answered_with_a_sentence(tmp_path: Path) -> None:
    def sentence(path: Path) -> str:
        with pytest.raises(ConfigurationError) as raised:
            load_configuration(path, {})
        return str(raised.value).replace(str(tmp_path), "")

    (tmp_path / "latin.yml").write_bytes(b"a: \xe9")
    (tmp_path / "control.yml").write_bytes(b"a: \x07")
    (tmp_path / "large.yml").write_bytes(b"#" * (1 << 21))
    assert sentence(tmp_path / "missing.yml") == "/missing.yml: cannot be read: No such file or directory"
    assert sentence(tmp_path) == ": cannot be read: Is a directory"
    assert sentence(Path("a\0b")) == "a\\x00b: cannot be read: not a path"
    assert sentence(tmp_path / "latin.yml") == "/latin.yml: not UTF-8 text (byte 4)"
    assert (
        sentence(tmp_path / "control.yml") == "/control.yml: not valid YAML: holds characters that YAML does not allow"
    )
    assert sentence(tmp_path / "large.yml") == "/large.yml: longer than 1048576 bytes"


def test_a_file_of_endless_length_is_read_in_part_only() -> None:
    with pytest.raises(ConfigurationError, match="longer than"):
        load_configuration(Path("/dev/zero"), {})


def test_aliases_that_multiply_are_refused(load: Load) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert refused(load, "\n".join(lines)).startswith(
        "config.yml: more than 100000 values, those behind aliases counted (line "
    )


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000])
def test_depth_is_refused_before_it_hurts(load: Load, text: str) -> None:
    assert refused(load, text).startswith("config.yml: nested more than 48 levels deep (line 1, column ")


# What is not built yet


def test_each_section_that_has_no_effect_yet_is_named_once(load: Load) -> None:
    loaded = load(FULL)
    named = [warning.split(": ")[1] for warning in loaded.warnings]
    assert named == [
        "loglevel",
        "middleware.storage.cloudfront",
        "storage.cache",
        "notifications",
        "redis",
        "health",
        "proxy",
        "validation",
        "policy",
    ]
    assert loaded.warnings[5] == "config.yml: health: has no effect yet; this version of Moorage does not support it"


def test_what_is_switched_off_is_not_complained_about(load: Load) -> None:
    text = with_storage(
        "middleware: {registry: [{name: a, disabled: true}]}\n"
        "notifications: {events: {includereferences: false}, endpoints: [{name: a, url: http://a, disabled: true}]}\n"
        "http: {http2: {disabled: true}, h2c: {enabled: false}, debug: {addr: ''}, tls: {certificate: ''}}\n"
        "health: {storagedriver: {enabled: false, interval: 10s}}\n"
        "validation: {disabled: true, manifests: {urls: {allow: [x]}}}\n"
        "proxy: {remoteurl: ''}\n"
        "redis:\n"
    )
    assert load(text).warnings == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("auth: silly", "config.yml: auth.silly: not supported by this version; refusing to start an open registry instead"),
        ("auth: {htpasswd: {realm: a, path: b}}", "config.yml: auth.htpasswd: not supported by this version; refusing to start an open registry instead"),
        ("http: {tls: {letsencrypt: {cachefile: /a}}}", "config.yml: http.tls.letsencrypt: not supported by this version; have certbot or lego write http.tls.certificate and http.tls.key, which are read again whenever they change"),
        ("proxy: {remoteurl: https://example.com}", "config.yml: proxy.remoteurl: not supported by this version; refusing to start a writable registry instead of a mirror"),
    ],
)  # fmt: skip
def test_what_would_be_unsafe_to_ignore_stops_the_start(load: Load, text: str, sentence: str) -> None:
    assert refused(load, with_storage(text)) == sentence


def test_authentication_from_the_environment_is_not_ignored_either(load: Load) -> None:
    assert refused(load, MINIMAL, {"REGISTRY_AUTH": "htpasswd", "REGISTRY_AUTH_HTPASSWD_REALM": "r"}) == (
        "REGISTRY_AUTH: auth.htpasswd: not supported by this version; refusing to start an open registry instead"
    )


def test_auth_none_is_an_open_registry(load: Load) -> None:
    for text in ("auth: none", "auth: {none: }", "auth: {}", "auth:"):
        assert load(with_storage(text)).configuration.auth.types == ()


def test_what_a_plugin_claims_is_neither_refused_nor_complained_about(load: Load) -> None:
    text = with_storage(
        "auth: {htpasswd: {path: /x}}\n"
        "http: {tls: {certificate: /c, minimumtls: tls1.3}}\n"
        "validation: {disabled: false, manifests: {urls: {deny: [x]}, indexes: {platforms: none}}}\n"
        "middleware: {storage: [{name: redirect}, {name: rewrite}]}\n"
    )
    claimed = _claimed("auth.htpasswd", "http.tls", "validation.manifests.indexes", "middleware.storage.redirect")
    loaded = load(text, claimed=claimed)
    assert [warning.split(": ")[1] for warning in loaded.warnings] == [
        "middleware.storage.rewrite",
        "validation.manifests.urls",
    ]
    assert loaded.configuration.auth.types == ("htpasswd",)
    assert loaded.configuration.section("validation.manifests.indexes") == {"platforms": "none"}
    assert loaded.configuration.section("validation.manifests.nothing") is None
    assert loaded.configuration.section("auth.htpasswd.path.deeper") is None


class Plain(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of some plugin."""

    limit: int = 0
    mode: str = ""


def _claimed(*sections: str) -> dict[str, type[Struct]]:
    """Say that plugins answer for `sections`."""
    return dict.fromkeys(sections, Plain)


class Machine(Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""


class Machines(Struct, frozen=True, forbid_unknown_fields=True):
    machine_list: tuple[Machine, ...] = field(name="machinelist", default=())


def test_a_variable_sets_what_the_options_of_a_plugin_have(load: Load) -> None:
    environ = {
        "REGISTRY_VALIDATION_MANIFESTS_MACHINES_MACHINELIST_0_NAME": "amd64",
        "REGISTRY_VALIDATION_MANIFESTS_MACHINES_MACHINELIST_1": "{name: arm64}",
    }
    loaded = load(with_storage(""), environ, claimed={"validation.manifests.machines": Machines})
    assert loaded.warnings == ()
    machines = loaded.configuration.decode("validation.manifests.machines", Machines)
    assert machines == Machines((Machine("amd64"), Machine("arm64")))


class Place:
    """A setting that is read from text or a mapping."""

    setting_schema: ClassVar[dict[str, object]] = {"anyOf": [{"type": "string"}, {"type": "object"}]}

    def __init__(self, told: object) -> None:
        self.told = told

    @classmethod
    def from_setting(cls, value: object) -> "Place":
        return cls(value)


class Places(Struct, frozen=True, forbid_unknown_fields=True):
    places: tuple[Place, ...] = ()
    patterns: tuple[Regex, ...] = ()


def test_a_variable_sets_a_part_of_what_a_plugin_reads_from_a_mapping(load: Load) -> None:
    environ = {
        "REGISTRY_MAPS_PATTERNS_0": "a+",
        "REGISTRY_MAPS_PATTERNS_0_X": "b",
        "REGISTRY_MAPS_PLACES_0_OS": "linux",
        "REGISTRY_MAPS_PLACES_0_VERSION": "'1'",
        "REGISTRY_MAPS_PLACES_1": "here",
    }
    loaded = load(with_storage(""), environ, claimed={"maps": Places})
    assert loaded.warnings == ("REGISTRY_MAPS_PATTERNS_0_X: names no setting; ignored",)
    found = loaded.configuration.decode("maps", Places)
    assert [place.told for place in found.places] == [{"os": "linux", "version": "1"}, "here"]
    assert found.patterns == (Regex("a+"),)


def test_a_claimed_section_may_have_keys_of_the_plugins_own(load: Load) -> None:
    text = with_storage(
        "validation: {manifests: {indexes: {platforms: none, repositories: [a/*]}, signatures: {mode: warn}}}\nquota: {limit: 1}"
    )
    assert refused(load, text).startswith("config.yml: quota: unknown key")
    claimed = _claimed("validation.manifests.indexes", "validation.manifests.signatures", "quota")
    environ = {"REGISTRY_QUOTA_LIMIT": "2", "REGISTRY_VALIDATION_MANIFESTS_INDEXES_MODE": "warn", "REGISTRY_PORT": "1"}
    loaded = load(text, environ, claimed=claimed)
    assert loaded.warnings == ("REGISTRY_PORT: names no setting; ignored",)
    configuration = loaded.configuration
    assert configuration.section("quota") == {"limit": 2}
    assert configuration.section("validation.manifests.indexes") == {
        "platforms": "none",
        "repositories": ["a/*"],
        "mode": "warn",
    }
    with pytest.raises(ConfigurationError, match=r"validation\.manifests\.indexes\.repositories: unknown key"):
        configuration.decode("validation.manifests.indexes", Indexes)


class Several(Struct, frozen=True):
    """Options with limits on how many there are."""

    names: Annotated[tuple[str, ...], Meta(min_length=1, max_length=2)] = ("a",)


@pytest.mark.parametrize(("names", "found"), [("[]", 0), ("", 0), ("[a, b, c]", 3)])
def test_lists_have_their_limits(load: Load, names: str, found: int) -> None:
    configuration = load(with_storage(f"plugins: {{p: {{names: {names}}}}}")).configuration
    if not names:
        assert configuration.decode("plugins.p", Several) == Several()
        return
    sentence = f"plugins.p.names: found {found} items; allowed are at least 1 and at most 2"
    with pytest.raises(ConfigurationError, match=sentence):
        configuration.decode("plugins.p", Several)


def test_a_variable_of_two_lines_is_named_on_one() -> None:
    with pytest.raises(ConfigurationError) as error:
        load_configuration(None, {"REGISTRY_STORAGE_ODD": "", "REGISTRY_STORAGE_\r": ""})
    assert "\r" not in str(error.value)


def test_an_authenticator_that_is_misspelt_is_told_which_is_meant(load: Load) -> None:
    claimed = {"auth.tokens": Plain}
    with pytest.raises(ConfigurationError, match=r'auth\.token: not supported by this version; did you mean "tokens"'):
        load(with_storage("auth: {token: {}}"), claimed=claimed)


class Color(enum.Enum):
    """A choice as a plugin would declare it."""

    RED = "red"
    BLUE = "blue"


class Indexes(Struct, frozen=True, kw_only=True):
    """Options that know less than what is written."""

    platforms: str = "all"
    mode: str = "enforce"


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options as a plugin would declare them."""

    name: str = "unnamed"
    mode: Literal["enforce", "warn"] = "enforce"
    count: Annotated[int, Meta(ge=1, le=10)] = 5
    share: float = 0.5
    some: list[str] | None = None
    either: int | str = 0
    short: Annotated[str, Meta(max_length=3, pattern="^[a-z]*$")] = ""
    unique: frozenset[int] = frozenset()
    colors: set[Color] = set()
    step: Literal[1, 2] = 1
    wait: Duration = 1.0

    def __post_init__(self) -> None:
        if self.count == 7:
            raise ValueError("count must not be 7")


def test_a_plugin_decodes_its_section_into_its_own_type(load: Load) -> None:
    text = with_storage(
        "plugins: {limits: {name: 007, mode: warn, count: 3, share: 1, some: [a], either: x, short: abc, unique: [1, 1],"
        " colors: [red, blue], step: 2, wait: 2s}}"
    )
    configuration = load(text, {"REGISTRY_PLUGINS_LIMITS_COUNT": "4"}).configuration
    assert configuration.decode("plugins.limits", Limits) == Limits(
        name="007",
        mode="warn",
        count=4,
        share=1.0,
        some=["a"],
        either="x",
        short="abc",
        unique=frozenset({1}),
        colors={Color.RED, Color.BLUE},
        step=2,
        wait=2.0,
    )
    assert configuration.decode("plugins.nothing", Limits) == Limits()


@pytest.mark.parametrize(
    ("options", "environ", "sentence"),
    [
        ("{cuont: 1}", {}, 'config.yml: plugins.limits.cuont: unknown key; did you mean "count"?'),
        ("{count: 11}", {}, "config.yml: plugins.limits.count: found 11; allowed is a whole number at least 1 at most 10"),
        ("{count: 7}", {}, "config.yml: plugins.limits: count must not be 7"),
        ("{}", {"REGISTRY_PLUGINS_LIMITS_COUNT": "many"}, 'REGISTRY_PLUGINS_LIMITS_COUNT: plugins.limits.count: found "many"; allowed is a whole number at least 1 at most 10'),
        ("{share: much}", {}, 'config.yml: plugins.limits.share: found "much"; allowed is a number'),
        ("{short: ABC}", {}, 'config.yml: plugins.limits.short: found "ABC"; allowed is text matching ^[a-z]*$'),
        ("{step: true}", {}, 'config.yml: plugins.limits.step: found true; allowed is "1" or "2"'),
        ("{colors: [green]}", {}, 'config.yml: plugins.limits.colors[0]: found "green"; allowed is "red" or "blue"'),
        ("{either: []}", {}, "config.yml: plugins.limits.either: found a list; allowed is a whole number or text"),
    ],
)  # fmt: skip
def test_a_plugin_gets_the_same_sentences(load: Load, options: str, environ: dict[str, str], sentence: str) -> None:
    configuration = load(with_storage(f"plugins: {{limits: {options}}}"), environ).configuration
    with pytest.raises(ConfigurationError) as raised:
        configuration.decode("plugins.limits", Limits)
    assert str(raised.value).rpartition("/")[2] == sentence


def test_a_type_that_a_configuration_cannot_hold_is_the_plugins_mistake(load: Load) -> None:
    class Odd(Struct):
        when: complex | None = None

    configuration = load(with_storage("plugins: {odd: {when: 1}}")).configuration
    with pytest.raises(TypeError, match="cannot hold"):
        configuration.decode("plugins.odd", Odd)


# The environment


@pytest.mark.parametrize(
    ("environ", "path", "value"),
    [
        ({"REGISTRY_HTTP_ADDR": "0.0.0.0:80"}, "http.addr", "0.0.0.0:80"),
        ({"REGISTRY_HTTP_RELATIVEURLS": "true"}, "http.relativeurls", True),
        ({"REGISTRY_HTTP_TRUSTEDPROXIES": "[10.0.0.0/8]"}, "http.trustedproxies", ["10.0.0.0/8"]),
        ({"REGISTRY_HTTP_TRUSTEDPROXIES_0": "10.0.0.1"}, "http.trustedproxies", ["10.0.0.1"]),
        ({"REGISTRY_HTTP_HEADERS_XA": "[a, b]"}, "http.headers", {"xa": ["a", "b"]}),
        ({"REGISTRY_HTTP_HEADERS": "{X-A: [a]}"}, "http.headers", {"X-A": ["a"]}),
        ({"REGISTRY_HTTP": "{addr: ':1'}", "REGISTRY_HTTP_PREFIX": "/p/"}, "http", {"addr": ":1", "prefix": "/p/"}),
        ({"REGISTRY_LOG_FIELDS_TEAM": "core"}, "log.fields", {"team": "core"}),
        ({"REGISTRY_LOG_ACCESSLOG_DISABLED": "true"}, "log.accesslog", {"disabled": True}),
        ({"REGISTRY_HEALTH_FILECHECKERS_0_FILE": "/down"}, "health.file", [{"file": "/down"}]),
        ({"REGISTRY_HEALTH_HTTPCHECKERS_0_URI": "http://a"}, "health.http", [{"uri": "http://a"}]),
        ({"REGISTRY_HEALTH_TCPCHECKERS_0_ADDR": "a:1"}, "health.tcp", [{"addr": "a:1"}]),
        ({"REGISTRY_NOTIFICATIONS_EVENTCONFIG_INCLUDEREFERENCES": "true"}, "notifications.events", {"includereferences": True}),
        ({"REGISTRY_LOG_HOOKS_0_MAILOPTIONS_FROM": "a@b"}, "log.hooks", [{"options": {"from": "a@b"}}]),
        ({"REGISTRY_REDIS_ADDRS_0": "a:1", "REGISTRY_REDIS_ADDRS_1": "b:1"}, "redis.addrs", ["a:1", "b:1"]),
        ({"REGISTRY_REDIS_TLS_ROOTCAS_0": "/ca"}, "redis.tls.rootcas", ["/ca"]),
        ({"REGISTRY_STORAGE_DELETE_ENABLED": "true"}, "storage.delete", {"enabled": True}),
        ({"REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED": "true"}, "storage.maintenance.readonly", {"enabled": True}),
        ({"REGISTRY_STORAGE_MAINTENANCE_READONLY": "{enabled: true}"}, "storage.maintenance.readonly", {"enabled": True}),
        ({"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": "/env"}, "storage.filesystem.rootdirectory", "/env"),
        ({"REGISTRY_STORAGE_FILESYSTEM_A_B_C": "1"}, "storage.filesystem.a", {"b": {"c": 1}}),
        ({"REGISTRY_PLUGINS_QUOTA_LIMIT": "5"}, "plugins.quota", {"limit": 5}),
        ({"REGISTRY_WORKERS": "3"}, "workers", 3),
        ({"REGISTRY_PROXY_TTL": "1h"}, "proxy.ttl", "1h"),
        ({"REGISTRY_POLICY_REPOSITORY_CLASSES_0": "image"}, "policy.repository.classes", ["image"]),
        ({"REGISTRY_MIDDLEWARE_STORAGE_0_NAME": "a", "REGISTRY_MIDDLEWARE_STORAGE_0_OPTIONS_BASEURL": "b"}, "middleware.storage", [{"name": "a", "options": {"baseurl": "b"}}]),
    ],
)  # fmt: skip
def test_a_variable_sets_what_its_name_leads_to(load: Load, environ: dict[str, str], path: str, value: object) -> None:
    loaded = load(MINIMAL, environ)
    assert loaded.configuration.section(path) == value
    assert not [warning for warning in loaded.warnings if "REGISTRY_" in warning and "names no setting" in warning]


def test_each_of_the_five_keys_answers_to_its_go_name_only(load: Load) -> None:
    wrong = [
        "REGISTRY_HEALTH_FILE_0_FILE",
        "REGISTRY_HEALTH_HTTP_0_URI",
        "REGISTRY_HEALTH_TCP_0_ADDR",
        "REGISTRY_LOG_HOOKS_0_OPTIONS_FROM",
        "REGISTRY_NOTIFICATIONS_EVENTS_INCLUDEREFERENCES",
    ]
    loaded = load(MINIMAL, dict.fromkeys(wrong, "x"))
    assert loaded.warnings == tuple(f"{name}: names no setting; ignored" for name in wrong)


def test_free_keys_are_found_whatever_their_case(load: Load) -> None:
    text = with_storage("plugins: {Quota: {maxSize: 1, Deep: {X: 1}}}\nhttp: {headers: {XFrame: [a]}}")
    configuration = load(
        text,
        {
            "REGISTRY_PLUGINS_QUOTA_MAXSIZE": "2",
            "REGISTRY_PLUGINS_QUOTA_DEEP_Y": "2",
            "REGISTRY_HTTP_HEADERS_XFRAME_1": "b",
        },
    ).configuration
    assert named(configuration) == {"Quota": {"maxSize": 2, "Deep": {"X": 1, "y": 2}}}
    assert configuration.http.headers == {"XFrame": ("a", "b")}


def test_a_section_is_set_before_what_lies_in_it(load: Load) -> None:
    environ = {
        "REGISTRY_STORAGE_S3_BUCKET": "b",
        "REGISTRY_STORAGE_S3": "{bucket: a, region: r}",
        "REGISTRY_STORAGE": "s3",
    }
    storage = load(MINIMAL, environ).configuration.storage
    assert (storage.driver, storage.parameters) == ("s3", {"bucket": "b", "region": "r"})


def test_a_driver_from_the_environment_alone_is_enough(load: Load) -> None:
    assert load("version: 0.1", {"REGISTRY_STORAGE": "inmemory"}).configuration.storage.driver == "inmemory"


def test_the_storage_variable_replaces_the_whole_section_as_in_distribution(load: Load) -> None:
    text = "version: 0.1\nstorage: {filesystem: {}, delete: {enabled: true}}"
    storage = load(text, {"REGISTRY_STORAGE": "inmemory"}).configuration.storage
    assert (storage.driver, storage.delete_enabled) == ("inmemory", False)


def test_parameters_reach_a_driver_that_the_file_names_by_its_name_alone(load: Load) -> None:
    storage = load(
        "version: 0.1\nstorage: filesystem", {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": "/e"}
    ).configuration.storage
    assert storage.parameters == {"rootdirectory": "/e"}


def test_a_second_driver_from_the_environment_is_refused_by_name(load: Load) -> None:
    assert refused(load, MINIMAL, {"REGISTRY_STORAGE_S3_BUCKET": "b"}) == (
        'config.yml: storage: names the drivers "filesystem" and "s3" (REGISTRY_STORAGE_S3_BUCKET); allowed is exactly one'
    )
    assert refused(load, "version: 0.1", {"REGISTRY_STORAGE_S3_BUCKET": "b", "REGISTRY_STORAGE_GCS_BUCKET": "b"}) == (
        'config.yml: storage: names the drivers "gcs" (REGISTRY_STORAGE_GCS_BUCKET) and "s3" (REGISTRY_STORAGE_S3_BUCKET);'
        " allowed is exactly one"
    )


def test_an_empty_variable_takes_a_setting_back(load: Load) -> None:
    text = with_storage("http: {addr: ':1', host: http://a}")
    http = load(text, {"REGISTRY_HTTP_HOST": "", "REGISTRY_HTTP_ADDR": ""}).configuration.http
    assert (http.host, http.addr) == ("", ":5000")


def test_a_list_is_changed_and_extended_by_position(load: Load) -> None:
    text = with_storage("notifications: {endpoints: [{name: a, url: http://a}]}")
    environ = {"REGISTRY_NOTIFICATIONS_ENDPOINTS_0_URL": "http://x", "REGISTRY_NOTIFICATIONS_ENDPOINTS_1_NAME": "b"}
    endpoints = load(text, environ).configuration.notifications.endpoints
    assert [(endpoint.name, endpoint.url) for endpoint in endpoints] == [("a", "http://x"), ("b", "")]


@pytest.mark.parametrize("position", ["3", "-1", "x", "", "99999999999", "\u0661"])
def test_a_position_beyond_the_end_is_refused(load: Load, position: str) -> None:
    name = f"REGISTRY_NOTIFICATIONS_ENDPOINTS_{position}_NAME"
    text = with_storage("notifications: {endpoints: [{name: a}, {name: b}]}")
    assert refused(load, text, {name: "x"}).endswith(
        ": notifications.endpoints: a list of 2, so the position in the name must be 0 to 2"
    )


def test_names_that_lead_nowhere_are_warnings(load: Load) -> None:
    nowhere = [
        "REGISTRY_",
        "REGISTRY_HTTP_ADDR_DEEPER",
        "REGISTRY_HTTP_PORT_80_TCP",
        "REGISTRY_PORT",
        "REGISTRY_PORT_5000_TCP_ADDR",
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY_DEEPER",
        "REGISTRY_http_addr",
    ]
    loaded = load(
        MINIMAL, {**dict.fromkeys(nowhere, "tcp://10.0.0.1:5000 %not: yaml"), "REGISTRYX": "x", "PATH": "/bin"}
    )
    assert loaded.warnings == tuple(f"{name}: names no setting; ignored" for name in nowhere)


def test_the_path_of_the_configuration_is_no_override(load: Load) -> None:
    assert load(MINIMAL, {"REGISTRY_CONFIGURATION_PATH": "/etc/distribution/config.yml"}).warnings == ()


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"REGISTRY_LOG_LEVEL": "loud"}, 'REGISTRY_LOG_LEVEL: log.level: found "loud"; allowed is "debug", "error", "info" or "warn"'),
        ({"REGISTRY_HTTP": "{adr: x}"}, 'REGISTRY_HTTP: http.adr: unknown key; did you mean "addr"?'),
        ({"REGISTRY_HTTP_SECRET": "[canary]"}, "REGISTRY_HTTP_SECRET: http.secret: found a list; allowed is text"),
        ({"REGISTRY_VERSION": "2"}, "REGISTRY_VERSION: version: found 2; allowed is 0.1"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_blamed_on_its_variable(load: Load, environ: dict[str, str], sentence: str) -> None:
    assert refused(load, MINIMAL, environ) == sentence


@pytest.mark.parametrize("value", ["@canary", "[canary", "{canary: *canary}", "!canary canary", "\udc80canary"])
def test_a_value_that_is_no_yaml_is_not_repeated(load: Load, value: str) -> None:
    sentence = refused(load, MINIMAL, {"REGISTRY_HTTP_SECRET": value})
    assert sentence.startswith("REGISTRY_HTTP_SECRET: ")
    assert "canary" not in sentence


# Secrets


def test_no_secret_is_shown(load: Load) -> None:
    loaded = load(FULL, {"REGISTRY_STORAGE_S3_SESSIONTOKEN": "canary-session"})
    configuration = loaded.configuration
    shown = json.dumps(configuration.shown())
    assert "canary" not in shown
    sections = [getattr(configuration, name) for name in configuration.__struct_fields__]
    for seen in (loaded, configuration, *(section for section in sections if not isinstance(section, dict))):
        assert "canary" not in repr(seen)
        assert "canary" not in str(seen)
    assert configuration.http.secret == "canary-signing"
    assert configuration.storage.parameters["secretkey"] == "canary-secret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sftp://me:canary@host/x", "sftp://***@host/x"),
        ("sftp://me:can@ary@host/x", "sftp://***@host/x"),
        ("sftp://me:can ary@host/x", "sftp://***@host/x"),
        ("sftp://me:can/a?ry@host/x?y=canary", "sftp://***@host/x?***"),
        ("https://host/x?y=canary@z", "https://***@z"),
    ],
)
def test_the_user_information_of_a_url_is_hidden_whatever_is_in_it(load: Load, url: str, shown: str) -> None:
    text = f"version: 0.1\nstorage: inmemory\nplugins: {{other: {{url: '{url}'}}}}\n"
    plugins = load(text).configuration.shown()["plugins"]
    assert plugins == {"other": {"url": shown}}


def test_what_is_no_secret_stays_visible(load: Load) -> None:
    shown = load(FULL).configuration.shown()
    assert shown["plugins"] == {
        "token": {"api-token": "***", "limit": 5},
        "other": {"apiKey": "***", "url": "ftp://***@host/x"},
    }
    storage = shown["storage"]
    assert isinstance(storage, dict)
    assert storage["s3"] == {
        "accesskey": "***",
        "secretkey": "***",
        "region": "us-west-1",
        "bucket": "content",
        "credentials": {"clientid": "***", "deeper": ["***"]},
    }
    http = shown["http"]
    assert isinstance(http, dict)
    assert http["headers"] == {"X-Frame-Options": ["DENY"]}
    assert http["secret"] == "***"
    assert "loglevel" not in shown


@pytest.mark.parametrize(
    "mistake",
    [
        "zzz: 1",
        "workers: many",
        "http: {secret: 1, adr: 2}",
        "http: {secret: [canary]}",
        "a: [",
        "tags: {maxtags: -1}",
        "version: 1",
    ],
)
def test_no_error_tells_a_secret(load: Load, mistake: str) -> None:
    name = mistake.split(":", maxsplit=1)[0]
    lines = [line for line in FULL.splitlines() if not line.startswith(name + ":")]
    text = "\n".join(lines) if name != "http" else yaml.safe_dump({**yaml.safe_load(FULL), "http": None})
    text = "\n".join(line for line in text.splitlines() if not (name == "http" and line.startswith("http:")))
    assert "canary" not in refused(load, f"{text}\n{mistake}\n")


def test_what_is_shown_means_the_same_when_loaded_again(load: Load) -> None:
    def comparable(configuration: Configuration) -> object:
        return [getattr(configuration, name) for name in configuration.__struct_fields__ if name != "document"]

    for text in (MINIMAL, with_storage("http: {draintimeout: 1ms, trustedproxies: [10.0.0.1]}\nlog: {level: error}")):
        configuration = load(text).configuration
        assert comparable(load(yaml.safe_dump(configuration.shown())).configuration) == comparable(configuration)


# The schema


def test_a_plugins_type_has_a_schema() -> None:
    schema = json_schema(inspected(Limits))
    Draft202012Validator.check_schema(schema)
    assert accepted_by(
        schema, "{name: a, count: 3, some: [a], either: 1, short: , colors: [red], step: 2, wait: 1s, share: .5}"
    )
    for text in (
        "{count: 11}",
        "{either: []}",
        "{short: ABC}",
        "{colors: [green]}",
        "{wait: 1x}",
        "{step: 3}",
        "{share: a}",
    ):
        assert not accepted_by(schema, text)


def accepted_by(schema: dict[str, object], text: str) -> bool:
    validator = Draft202012Validator(schema)
    return validator.is_valid(yaml.safe_load(text))  # pyright: ignore[reportUnknownMemberType]  # its stubs say so


@pytest.mark.parametrize(
    "text", [MINIMAL, DEVELOPMENT, FULL.replace("List", "list"), "version: 0.1\nstorage: inmemory\nauth: none"]
)
def test_the_schema_accepts_what_is_accepted(load: Load, text: str) -> None:
    schema = configuration_schema()
    Draft202012Validator.check_schema(schema)
    assert accepted_by(schema, text)
    load(text)


@pytest.mark.parametrize(
    "text",
    [
        "version: 0.1",
        "storage: inmemory",
        "version: 0.2\nstorage: inmemory",
        with_storage("htp: {}"),
        with_storage("http: {adr: x}"),
        with_storage("http: {debug: {promtheus: {}}}"),
        with_storage("workers: 0"),
        with_storage("log: {level: loud}"),
        with_storage("http: {draintimeout: 1x}"),
        with_storage("auth: {a: 1, b: {}}"),
        with_storage("notifications: {endpoints: [{nme: x}]}"),
        "version: 0.1\nstorage: {inmemory: , delete: {enable: true}}",
    ],
)
def test_the_schema_refuses_what_is_refused(load: Load, text: str) -> None:
    assert not accepted_by(configuration_schema(), text)
    refused(load, text)


def test_the_schema_describes_the_settings_that_have_an_effect() -> None:
    described = json.dumps(configuration_schema())
    assert "Where to listen" in described
    assert "How many processes answer requests" in described


# Whatever comes


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates()
SECTION_NAMES = sorted(load_configuration(None, {}).configuration.__struct_fields__)
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["addr", "level", "enabled", "headers", "endpoints", "tls", "x"]) | SCALARS,
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
WORDS = st.sampled_from([
    "STORAGE",
    "S3",
    "HTTP",
    "HEADERS",
    "0",
    "1",
    "REDIS",
    "ADDRS",
    "LOG",
    "HOOKS",
    "HEALTH",
    "FILECHECKERS",
    "PLUGINS",
    "AUTH",
    "",
    "X",
])
VALUES = st.text(max_size=20) | st.sampled_from(["s3", "{a: {b: 1}}", "[1, {x: y}]", "true", "1h", "&a [*a]", "\udc80"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | st.text(alphabet="abc:{}[]&*!|>-?,#'\"%@\n\t 01.<~", max_size=80).map(str.encode))
def test_arbitrary_bytes_are_a_configuration_or_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes(data)
    only_configuration_errors(path, {})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sections=st.dictionaries(st.sampled_from(SECTION_NAMES), NESTED, max_size=5))
def test_arbitrary_sections_are_a_configuration_or_an_error(tmp_path: Path, sections: dict[str, object]) -> None:
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump({"version": 0.1, **sections}), encoding="utf-8", errors="surrogateescape")
    only_configuration_errors(path, {})


@settings(max_examples=300, deadline=None)
@given(
    environ=st.dictionaries(
        st.lists(WORDS | st.text(max_size=5), max_size=6).map(lambda words: "_".join(["REGISTRY", *words])),
        VALUES,
        max_size=5,
    )
)
def test_an_arbitrary_environment_is_a_configuration_or_an_error(environ: dict[str, str]) -> None:
    only_configuration_errors(None, environ)


def test_a_name_of_very_many_words_leads_nowhere(load: Load) -> None:
    name = "REGISTRY_PLUGINS" + "_A" * 5000
    assert load(MINIMAL, {name: "1"}).warnings == (f"{name}: names no setting; ignored",)


def only_configuration_errors(path: Path | None, environ: Mapping[str, str]) -> None:
    try:
        loaded = load_configuration(path, environ)
    except ConfigurationError as error:
        sentences = [str(error)]
    else:
        loaded.configuration.shown()
        sentences = [repr(loaded), *loaded.warnings]
    assert all(len(sentence.splitlines()) == 1 and sentence.encode() for sentence in sentences)

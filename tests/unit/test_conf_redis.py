"""REDIS_URL and REDIS_CLUSTER name a server, a cluster or Sentinels, and contradictions are errors."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from reliable_cable.conf import read_settings
from reliable_cable.conf.redis_urls import split_redis_url


class TestURL:
    def test_a_cluster_has_several_addresses(self) -> None:
        parts = split_redis_url("rediss://u:p%2F@a:1,b,[::1]:2/0?ssl_cert_reqs=none")
        assert parts.addresses == (("a", 1), ("b", 6379), ("::1", 2))
        assert parts.server("::1", 2) == "rediss://u:p%2F@[::1]:2/0?ssl_cert_reqs=none"

    def test_whole_urls_are_addresses_too(self) -> None:
        parts = split_redis_url("redis://:p,q@a:1/0,redis://b:2,c,redis://:p,q@d/0")
        assert parts.addresses == (("a", 1), ("b", 2), ("c", 6379), ("d", 6379))
        assert parts.server("b", 2) == "redis://:p,q@b:2/0"

    def test_sentinels_have_a_service(self) -> None:
        parts = split_redis_url("redis+sentinel://:p@a,b:2/main/3?sentinel_password=s&client_name=c")
        assert (parts.addresses, parts.service, parts.database) == ((("a", 26379), ("b", 2)), "main", "3")
        assert parts.server("h", 1) == "redis://:p@h:1/3?client_name=c"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://:secret@localhost:port/7", "is not a URL with a host and a port"),
        ("redis://:secret@localhost:99999/7", "is not a URL with a host and a port"),
        ("rediss://:secret@localhost/seven", "has the database 'seven'; it must be a number"),
        ("redis://:secret@localhost/7/8", "has the database '7/8'; it must be a number"),
    ],
)
def test_a_url_of_redis_with_a_wrong_port_or_database_is_an_error(url: str, message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message) as caught:
        read_settings({"REDIS_URL": url})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://h/", "redis://h:1/0", "rediss://u:p@h/15?x=1", "unix:///a/b?db=2"]
)
def test_correct_urls_of_redis_are_accepted(url: str) -> None:
    assert read_settings({"REDIS_URL": url}).redis_url == url


class TestRedisCluster:
    @pytest.mark.parametrize(
        "values",
        [
            {"REDIS_URL": "redis://a:7000,b:7001"},
            {"REDIS_URL": "redis://a:7000,b:7001/0"},
            {"REDIS_URL": "rediss://node", "REDIS_CLUSTER": True},
        ],
    )
    def test_several_addresses_or_the_setting_mean_a_cluster(self, values: dict[str, Any]) -> None:
        assert read_settings(values).uses_cluster

    @pytest.mark.parametrize("url", [None, "redis://a", "unix:///a,b", "redis+sentinel://a,b/service"])
    def test_other_urls_mean_none(self, url: str | None) -> None:
        assert not read_settings({"REDIS_URL": url}).uses_cluster

    @pytest.mark.parametrize(
        ("values", "problem"),
        [
            ({"REDIS_URL": "redis://a,b/1"}, "has only the database 0"),
            ({"REDIS_URL": "redis://a/2", "REDIS_CLUSTER": True}, "has only the database 0"),
            ({"REDIS_URL": "redis://a,b", "KEY_PREFIX": "x{y}"}, "without braces"),
            ({"REDIS_CLUSTER": True}, "with no REDIS_URL; it needs the address of at least one node"),
            ({"REDIS_CLUSTER": True, "REDIS_URL": "unix:///run/redis.sock"}, "begins with unix://; it needs"),
            ({"REDIS_CLUSTER": True, "REDIS_URL": "redis+sentinel://a/service"}, "manage one primary, and no cluster"),
            ({"REDIS_URL": "redis+sentinel://a,b"}, "no name of the Sentinels' service; write it as in redis"),
            ({"REDIS_URL": "redis+sentinel://a,b/service/x"}, "the database 'x'; it must be a number"),
            ({"REDIS_URL": "redis+sentinel://a:b/service"}, "is not a URL with addresses and a service"),
            ({"REDIS_URL": "redis://a:1,b:c"}, "is not a URL with a host and a port"),
            ({"REDIS_URL": "redis://a,rediss://b"}, "has URLs with different schemes; either all nodes use TLS"),
            ({"REDIS_URL": "redis://:p@a,redis://:q@b"}, "has URLs with different users or passwords"),
            ({"REDIS_URL": "redis://a/0,redis://b/1"}, "has URLs with different paths"),
        ],
    )
    def test_contradictions_are_errors_that_say_what_is_allowed(self, values: dict[str, Any], problem: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=re.escape(problem)):
            read_settings(values)

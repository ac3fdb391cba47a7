"""Connecting to the Redis that holds checkpoints: one server, with TLS, through Sentinel, or a cluster.

What belongs here: URLs, clients, and errors in words. What does not: any command on checkpoints.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import InvalidResponse, MovedError, RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from ops_pipeline.reconcile import Unavailable
from ops_pipeline.settings import Settings

TIMEOUT_SECONDS = 10
SENTINEL_PORT, REDIS_PORT = 26379, 6379
EXAMPLES = (
    "redis://user:password@host:6379/2, rediss://… with TLS, unix:///path?db=2,"
    " redis+sentinel://:password@host1:26379,host2:26379/name-of-primary/2 or redis+cluster://host:6379"
)

NODE = "{where} is one node of a cluster, with a part of the keys: name it as redis+cluster://host:port."


@dataclass(frozen=True)
class Store:
    """The Redis that holds checkpoints.

    Attributes:
        where: its address without secrets, for people.
        client: takes commands on keys, wherever they lie.
        scanned: a client for each server that is scanned: the primaries, or a replica of each.
        database: the number of its database.
        cluster: whether keys lie in slots, so that no command may name several.
    """

    where: str
    client: Any
    scanned: tuple[redis.Redis, ...]
    database: int
    cluster: bool = False


def redis_url(*, host: str, port: int, password: str, database: int) -> str:
    """The URL of a plain server; whatever is in the password."""
    login = f":{quote(password, safe='')}@" if password else ""
    return f"redis://{login}{host}:{port}/{database}"


def configured_url(settings: Settings) -> str | None:
    """The URL of the Redis with checkpoints, password included: only for connecting. None when none is named."""
    url = settings.checkpoint_redis_url.get_secret_value()
    if url or not settings.nautobot_redis_host:
        return url or None
    return redis_url(
        host=settings.nautobot_redis_host,
        port=settings.nautobot_redis_port,
        password=settings.nautobot_redis_password.get_secret_value(),
        database=settings.langgraph_redis_db,
    )


def masked(url: str) -> str:
    """The URL without user, password and parameters."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "***"
    place, _, parameters = rest.partition("?")
    if "@" in parameters:
        # A parameter with this letter, or a password with a question mark: nothing is certain not to be secret.
        return f"{scheme}://***"
    return f"{scheme}://***@{place.rpartition('@')[2]}" if "@" in place else f"{scheme}://{place}"


def check_url(url: str) -> None:
    """Refuse a URL that names no Redis.

    Raises:
        ValueError: what is wrong with it, without its secrets.
    """
    try:
        _check_parts(urlsplit(url))
    except ValueError:
        raise ValueError(f"{masked(url)} is no Redis URL; write for example {EXAMPLES}") from None


def _check_parts(parts: SplitResult) -> None:
    scheme, _, kind = parts.scheme.partition("+")
    known = scheme in {"redis", "rediss", "unix"} and kind in {"", "sentinel", "cluster"}
    if not known or (not parts.netloc and scheme != "unix"):
        raise ValueError("no such scheme")
    if kind == "sentinel":
        _sentinel_parts(parts)
        return
    _database(parts.path.strip("/") if scheme != "unix" else "")
    if parts.port == 0:
        raise ValueError("no port")


@contextmanager
def open_store(url: str, *, replicas: bool = False) -> Generator[Store, None, None]:
    """Connect, and close at the end.

    Args:
        url: see `check_url`.
        replicas: scan replicas instead of primaries, where there are any.

    Raises:
        Unavailable: there is no such server, or it refuses us; the message says what to do.
    """
    check_url(url)
    where = masked(url)
    closing: list[Any] = []
    try:
        with in_words(where):
            try:
                store = _connect(url, where, replicas, closing)
                store.client.ping()
            except TypeError:
                # The client takes any parameter, and stumbles over it when it connects.
                raise ValueError(f"{where}: the Redis URL has a parameter that its scheme does not know") from None
        yield store
    finally:
        for client in closing:
            with suppress(redis.RedisError, OSError):
                client.close()


@contextmanager
def in_words(where: str) -> Generator[None, None, None]:
    """Errors of the connection become `Unavailable`, with what to do; errors of single commands pass."""
    try:
        yield
    except redis.AuthenticationError as error:
        told = _first_line(error)
        if "HELLO must be called" in told:
            told = "it wants a password, and none was given"
        raise Unavailable(f"{where}: {told}. Check user and password of the Redis URL.") from None
    except redis.BusyLoadingError:
        raise Unavailable(f"{where} is still loading its data: run again when it has.") from None
    except redis.ReadOnlyError:
        raise Unavailable(f"{where} is a replica and takes no writes: name the primary in the Redis URL.") from None
    except redis.OutOfMemoryError:
        raise Unavailable(f"{where} is out of memory and refuses even this: raise its maxmemory.") from None
    except (redis.ConnectionError, redis.TimeoutError, RedisClusterException, InvalidResponse, OSError) as error:
        raise Unavailable(
            f"{where}: {_first_line(error)}. Check that the server runs, and host, port and TLS of the Redis URL."
        ) from None
    except MovedError:
        raise Unavailable(NODE.format(where=where)) from None
    except redis.ResponseError as error:
        if any(words in str(error) for words in ("CROSSSLOT", "same slot", "MOVED")):
            raise Unavailable(NODE.format(where=where)) from None
        advice = "Check the number of the database" if "DB index" in str(error) else "Check the rights of this user"
        raise Unavailable(f"{where}: {_first_line(error)}. {advice} in the Redis URL.") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _connect(url: str, where: str, replicas: bool, closing: list[Any]) -> Store:
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    # One try: what fails is told at once, and no command is sent twice.
    options: dict[str, Any] = {
        "socket_timeout": TIMEOUT_SECONDS,
        "socket_connect_timeout": TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    if kind == "cluster":
        cluster = RedisCluster.from_url(url.replace("+cluster", "", 1), **options)
        closing.append(cluster)
        clients = tuple(cluster.get_redis_connection(node) for node in _scanned_nodes(cluster, replicas=replicas))
        return Store(where, cluster, clients, 0, cluster=True)
    if kind == "sentinel":
        hosts, name, database, login = _sentinel_parts(parts)
        secure = {"ssl": True} if scheme == "rediss" else {}
        # The first of them may be the one that is down: without this it is tried for ten seconds.
        asked = options | _sentinel_login(parts)
        sentinel = Sentinel(hosts, sentinel_kwargs=asked, db=database, **login, **secure, **options)
        primary = sentinel.master_for(name)
        scanned = sentinel.slave_for(name) if replicas else primary
        closing += [primary, scanned]
        return Store(where, primary, (scanned,), database)
    client = redis.Redis.from_url(url, **options)
    closing.append(client)
    database = int(client.connection_pool.connection_kwargs.get("db") or 0)
    return Store(where, client, (client,), database)


def _scanned_nodes(cluster: RedisCluster, *, replicas: bool) -> list[Any]:
    """Every primary, or one replica of each that has any: a part of the keys unseen makes orphans of the others."""
    if not replicas:
        return cluster.get_primaries()
    shards = cluster.nodes_manager.slots_cache.values()
    return list({primary.name: copies[0] if copies else primary for primary, *copies in shards}.values())


def _sentinel_parts(parts: SplitResult) -> tuple[list[tuple[str, int]], str, int, dict[str, str]]:
    """Hosts, the primary's name, the database and the login of a Sentinel URL."""
    login, _, places = parts.netloc.rpartition("@")
    hosts = []
    for place in places.split(","):
        host, separator, port = place.rpartition(":")
        hosts.append((host, int(port)) if separator else (port, SENTINEL_PORT))
    name, _, database = parts.path.strip("/").partition("/")
    if not name:
        raise ValueError("no name of a primary")
    user, _, password = login.partition(":")
    words = {"username": unquote(user), "password": unquote(password)}
    return hosts, unquote(name), _database(database), {key: word for key, word in words.items() if word}


def _sentinel_login(parts: SplitResult) -> dict[str, str]:
    given = parse_qs(parts.query)
    names = {"sentinel_username": "username", "sentinel_password": "password"}
    return {names[name]: values[0] for name, values in given.items() if name in names}


def _database(text: str) -> int:
    if text and not text.isdigit():
        raise ValueError("no number of a database")
    return int(text or 0)

"""What is stored, logged and shown, what an outage becomes, and how the server is reached."""

from __future__ import annotations

from .run import Mutant

__all__ = ["MUTANTS"]

MIDDLEWARE, PAGE = "_lifecycle/middleware.py", "docs/security.rst"

MUTANTS = [
    # What is stored.
    Mutant(
        "Stored bytes run no code",
        "a pickle is loaded",
        "codec.py",
        "    loads = staticmethod(",
        "    import pickle\n\n    loads = staticmethod(lambda encoded: JSONCodec.load(encoded)"
        ' if encoded[:1] != b"\\x80" else JSONCodec.pickle.loads(encoded))\n    load = staticmethod(',
    ),
    Mutant(
        "Stored bytes run no code",
        "JSON that is no dict is a session",
        "_engine/session_codec.py",
        "if not isinstance(decoded, dict):",
        "if False:",
    ),
    Mutant(
        "Keys inject nothing",
        "what the client sends is a key",
        "cookie.py",
        '_ID = "[A-Za-z0-9_-]{43}"',
        '_ID = "[^;]+"',
    ),
    Mutant(
        "Keys inject nothing",
        "a key is what it was made from",
        "cookie.py",
        'return urlsafe_b64encode(hashlib.sha256(f"{cookie}={session_id}".encode()).digest())[:-1].decode()',
        'return f"{cookie}={session_id}"',
    ),
    Mutant(
        "Names of tables",
        "any text is the name of a table",
        "url.py",
        "    if not _IDENTIFIER.fullmatch(value):\n",
        "    if False:\n",
    ),
    Mutant(
        "One visitor's answer",
        "memcached: a connection with an answer on its way is not closed",
        "storages/_memcached_protocol.py",
        "stream, is_clean = await self._pool.acquire(), False",
        "stream, is_clean = await self._pool.acquire(), True",
        "memcached",
    ),
    Mutant(
        "One visitor's answer",
        "redis: neither we nor the driver close what has an answer on its way",
        "storages/_redis_connections.py",
        "link, is_clean = await pool.acquire(), False",
        (
            "link, is_clean = await pool.acquire(), True\n"
            "        link.connection.disconnect = lambda *_, **__: asyncio.sleep(0)"
        ),
        "redis",
    ),
    Mutant(
        "One visitor's answer",
        "mysql: neither we nor the driver close what has an answer on its way",
        "storages/_mysql_hosts.py",
        "connection, is_clean = await pool.acquire(), False",
        ("connection, is_clean = await pool.acquire(), True\n        connection._close_on_cancel = lambda: None"),
        "mysql",
    ),
    Mutant(
        "Two apps on one server",
        "redis: the prefix counts for nothing",
        "storages/redis.py",
        "self.prefix, self.timeout, self.legacy = options.prefix,",
        'self.prefix, self.timeout, self.legacy = "session:",',
        "redis",
    ),
    Mutant(
        "Two apps on one server",
        "memcached: the prefix counts for nothing",
        "storages/memcached.py",
        "[(self.prefix + key).encode() for key in keys]",
        '[("session:" + key).encode() for key in keys]',
        "memcached",
    ),
    Mutant(
        "Two apps on one server",
        "mysql: all tables are one",
        "storages/mysql.py",
        "Table(self.options.table)",
        'Table("sessions")',
        "mysql",
    ),
    Mutant(
        "Two apps on one server",
        "mongodb: all collections are one",
        "storages/_mongodb_url.py",
        "return client.get_database(database).get_collection(name)",
        'return client.get_database(database).get_collection("sessions")',
        "mongodb",
    ),
    Mutant(
        "Two apps on one server",
        "sqlite: all tables are one",
        "storages/sqlite.py",
        "self.table = table = options.table",
        'self.table = table = "sessions"',
        "sqlite",
    ),
    Mutant(
        "``memory://`` holds",
        "memory:// grows without end",
        "storages/memory.py",
        "        if len(part) > self._room:\n",
        "        if False:\n",
    ),
    Mutant(
        "What is remembered of requests",
        "every Cookie header is remembered",
        "cookie.py",
        "lru_cache(MAX_REMEMBERED)",
        "lru_cache(None)",
    ),
    # What is logged and shown.
    Mutant(
        "OWASP, logging",
        "a whole key is logged",
        "_engine/writing.py",
        'as it was emptied", snapshot.key[:8])',
        'as it was emptied", snapshot.key)',
    ),
    Mutant(
        "OWASP, logging",
        "the end of a session is not logged",
        "_engine/writing.py",
        'logger.info("session %s destroyed", key[:8])',
        "pass",
    ),
    Mutant(
        "Bad cookies fill no log",
        "each forged signature is logged",
        "cookie.py",
        "stale=age > 0)\n        return None\n",
        (
            "stale=age > 0)\n"
            '        __import__("logging").getLogger("aiohttp_store").info("forged")\n'
            "        return None\n"
        ),
    ),
    Mutant(
        "Bad cookies fill no log",
        "each forged session is logged",
        "_engine/cookie_manager.py",
        "        if opened is None:\n",
        '        if opened is None:\n            logger.info("forged")\n',
    ),
    Mutant(
        "Bad cookies fill no log",
        "what repeats is logged each time",
        "_log.py",
        "THROTTLE = 60.0",
        "THROTTLE = 0.0",
    ),
    Mutant(
        "Passwords are never shown",
        "a URL shows its password",
        "url.py",
        "login = f\"{quote(self.user or '', safe='')}:***\"",
        "login = f\"{quote(self.user or '', safe='')}:{self.password}\"",
    ),
    Mutant(
        "Passwords are never shown",
        "a URL shows its secret parameters",
        "url.py",
        "{'***' if is_secret(name) else value}",
        "{value}",
    ),
    Mutant(
        "Passwords are never shown",
        "a URL's repr shows its password",
        "url.py",
        "password: str | None = field(default=None, repr=False)",
        "password: str | None = field(default=None)",
    ),
    Mutant(
        "CWE-532, CWE-117",
        "the complaint of a URL quotes its password",
        "url.py",
        'write name:port or "\n',
        'write name:port, not {part!r}, or "\n',
    ),
    Mutant(
        "CWE-532, CWE-117",
        "the complaint of a URL quotes what may be its password",
        "url.py",
        """{_beginning(text)} is not a storage URL""",
        """{text!r} is not a storage URL""",
    ),
    Mutant(
        "CWE-532: an error",
        "an id that was presented shows itself in a frame",
        "cookie.py",
        "<PresentedId of session {self.key[:8]}",
        "<PresentedId {self.id} of session {self.key[:8]}",
    ),
    Mutant(
        "CWE-532: an error",
        "a snapshot shows its id in a frame",
        "_engine/state.py",
        "<Snapshot of session {self.key[:8]}",
        "<Snapshot {self.id} of session {self.key[:8]}",
    ),
    # Outages.
    Mutant(
        "An outage is neither",
        "in an outage visitors are anonymous",
        MIDDLEWARE,
        "                visit.failure = error\n                raise\n",
        "                state = await visit.manager.new(request, None)\n",
    ),
    Mutant(
        "A failure in the midst",
        "an error page is written into a stream",
        MIDDLEWARE,
        "if isinstance(error, REFUSALS) and not visit.headers_sent and request.writer.output_size == 0:",
        "if isinstance(error, REFUSALS):",
    ),
    # The way to the server.
    Mutant(
        "The server is the one",
        "any certificate will do",
        "url.py",
        "context = ssl.create_default_context(cafile=self.tls_ca)",
        "context = ssl._create_unverified_context(cafile=self.tls_ca)",
    ),
    Mutant(
        "The server is the one",
        "a certificate may be of another host",
        "url.py",
        "context = ssl.create_default_context(cafile=self.tls_ca)\n",
        "context = ssl.create_default_context(cafile=self.tls_ca)\n            context.check_hostname = False\n",
    ),
    Mutant(
        "The server is the one",
        "tls_ca without tls is taken for TLS",
        "url.py",
        "            if given is not None:\n",
        "            if False:\n",
    ),
    Mutant(
        "The server is the one",
        "mysql: a server without TLS gets sessions in plain",
        "storages/_mysql_driver.py",
        "if self._ssl_context and not self.server_capabilities & CLIENT.SSL:",
        "if False:",
    ),
    # The page itself.
    Mutant(
        "ASVS 3.4.1",
        "the hardened set-up does not demand https",
        PAGE,
        "    app.on_response_prepare.append(demand_https)\n",
        "",
    ),
    Mutant(
        "ASVS 3.5.1",
        "the hardened set-up takes forms of other sites",
        PAGE,
        'is_ours = site in ("same-origin", "none")',
        "is_ours = True",
    ),
    Mutant(
        "ASVS 3.5.1",
        "the hardened set-up takes forms of sibling domains",
        PAGE,
        '("same-origin", "none")',
        '("same-origin", "same-site", "none")',
    ),
    Mutant(
        "ASVS 4.4.2",
        "the hardened set-up asks nobody at a WebSocket's handshake",
        PAGE,
        'is_handshake = "Sec-WebSocket-Key" in request.headers',
        "is_handshake = False",
    ),
    Mutant(
        "ASVS 4.4.2",
        "the hardened set-up does not compare Origin",
        PAGE,
        "is_ours = origin in (None, str(request.url.origin()))",
        "is_ours = True",
    ),
    Mutant(
        "A WebSocket ends",
        "saving a session that has ended says nothing",
        "session.py",
        "        await self._asked(state.manager.commit(state))\n        self._tell_if_gone()\n",
        "        await self._asked(state.manager.commit(state))\n",
    ),
    Mutant(
        "A WebSocket ends",
        "the WebSocket of the hardened set-up does not ask",
        PAGE,
        "await session.reload()  # the visitor may have logged out since",
        "pass",
    ),
    Mutant(
        "ASVS 7.1.1",
        "a session may be unused for a week, and the page says otherwise",
        "_engine/lifetimes.py",
        "IDLE_TIMEOUT = 86_400.0",
        "IDLE_TIMEOUT = 604_800.0",
    ),
]

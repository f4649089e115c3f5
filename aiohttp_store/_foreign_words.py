"""Words that people bring from aiohttp-session, Flask, Django and Express, each with what to write here instead."""

from __future__ import annotations

from collections.abc import Container
from functools import cache
from typing import Literal, NamedTuple

__all__ = ["ROWS", "Row", "answer", "parameter"]


class Row(NamedTuple):
    """What to write instead of some words, by where they are met; empty where they mean nothing."""

    words: str
    """In lower case and without `_` and `-`: `maxage` is `max_age`, `maxAge` and `SESSION_MAX_AGE`."""
    keyword: str = ""
    """Of `setup` or of `Cookie`."""
    attribute: str = ""
    """Of a session, read, called or set."""
    parameter: str = ""
    """Of a storage's URL."""
    scheme: str = ""
    """Of a storage's URL."""
    ours: str = ""
    """Our own parameters of a URL, in the order in which they are looked for; the first that the URL knows counts."""


_IN_URL = "is a parameter of the storage's URL, such as"
_OF_SETUP = "is a keyword of setup(), such as setup(app, url, "
_NOT_NEEDED = "leave it out: "
_POSTGRESQL = "examples/postgresql_storage.py is a storage for it, to be copied"
_OWN = "there is no storage for it; write one (Writing a storage), and make it known by register()"

ROWS = (
    # How long a session lives.
    Row(
        "maxage age ttl expires expiry expire expiration expirein expiresin expireafter maxinactiveinterval lifespan "
        "permanentsessionlifetime duration maxidle idletime setexpiry getexpiryage getexpirydate setmaxage gcttl "
        "originalmaxage cookieage",
        keyword="idle_timeout=3600 ends a session after an hour without use, lifetime=… however busy it is, and "
        "cookie=Cookie(persistent=True) makes the cookie outlive the browser",
        attribute="session.idle_timeout = 3600 ends it after an hour without use",
        parameter="times are keywords of setup(): idle_timeout=3600, or lifetime=…",
    ),
    Row(
        "timeout sessiontimeout",
        keyword="idle_timeout=3600 ends a session after an hour without use; the storage's is in its URL: ?timeout=2",
        attribute="session.idle_timeout = 3600 ends it after an hour without use",
    ),
    Row(
        "permanent persistent persist remember rememberme expireatbrowserclose getexpireatbrowserclose",
        keyword="cookie=Cookie(persistent=True) makes the cookie outlive the browser",
        attribute="session.idle_timeout = 30 * 86400 makes it and its cookie outlive the browser",
        parameter="give setup() cookie=Cookie(persistent=True)",
    ),
    Row(
        "absolutetimeout absolutelifetime maxlifetime hardtimeout maxduration",
        keyword="lifetime=… ends a session however busy it is",
        parameter="give setup() lifetime=…",
    ),
    Row("idletimeout", parameter=f"it {_OF_SETUP}idle_timeout=3600)"),
    Row("lifetime", attribute="lifetime= is a keyword of setup()", parameter=f"it {_OF_SETUP}lifetime=86400)"),
    # The cookie.
    Row(
        "cookiename name sessioncookie cookiekey",
        keyword="cookie=Cookie(name=…) names the cookie",
        parameter="give setup() cookie=Cookie(name=…)",
    ),
    Row("domain cookiedomain", keyword="cookie=Cookie(domain=…)", parameter="give setup() cookie=Cookie(domain=…)"),
    Row("path cookiepath", keyword="cookie=Cookie(path=…)"),
    Row(
        "secure cookiesecure httpsonly cookiehttpsonly",
        keyword="cookie=Cookie(secure=…), which is 'auto' by default",
        parameter="tls=true encrypts the storage's connection; give setup() cookie=Cookie(secure=…) for the cookie",
    ),
    Row("httponly", keyword="cookie=Cookie(httponly=…)", parameter="give setup() cookie=Cookie(httponly=…)"),
    Row("samesite", keyword="cookie=Cookie(samesite='Lax')", parameter="give setup() cookie=Cookie(samesite=…)"),
    Row("partitioned chips", keyword="cookie=Cookie(partitioned=True)"),
    Row("priority", keyword="cookie=Cookie(priority=…)"),
    Row(
        "cookie cookieparams cookieoptions cookiesettings",
        keyword="cookie=Cookie(name=…, path=…)",
        attribute="setup(cookie=Cookie(…)) says what its cookie is like",
        parameter=f"it {_OF_SETUP}cookie=Cookie(name=…))",
    ),
    # Secrets, ids and values.
    Row(
        "secretkey secrets keys signingkey fernetkey fernet signkey cookiesecret usesigner signed sign signer",
        keyword="secret=…, of 32 bytes or more, signs the cookie; under cookie:// it seals the session",
        parameter=f"secret= {_OF_SETUP}secret=…)",
    ),
    Row("key", keyword="secret=… signs the cookie, and cookie=Cookie(name=…) names it", ours="tls_key=…"),
    Row("secret", parameter=f"it {_OF_SETUP}secret=…)"),
    Row(
        "encoder decoder serializer serialiser serialize deserialize serializationformat dumps loads json",
        keyword="codec=…, an object with dumps and loads",
        parameter="give setup() codec=…",
    ),
    Row("codec onconflict", parameter=f"it {_OF_SETUP}codec=…, on_conflict=…)"),
    Row(
        "conflict merge concurrency lock locking strategy onconflicts",
        keyword="on_conflict='merge', 'overwrite' or 'raise'",
        parameter="give setup() on_conflict=…",
    ),
    Row(
        "genid generateid generator keyfactory idfactory sidlength idlength idgenerator",
        keyword=f"{_NOT_NEEDED}ids are random, of 256 bits, and cannot be chosen",
        parameter=f"{_NOT_NEEDED}ids are random, of 256 bits, and cannot be chosen",
    ),
    Row(
        "resave saveuninitialized rolling rollingcookie saveeveryrequest refresheachrequest autosave autocommit "
        "autorefresh unset lazy",
        keyword=f"{_NOT_NEEDED}a session is saved if it has changed, and prolonged if it is used",
        parameter=f"{_NOT_NEEDED}a session is saved if it has changed, and prolonged if it is used",
    ),
    Row(
        "proxy trustproxy proxies trustedproxies",
        keyword=f"{_NOT_NEEDED}the app believes its proxies by aiohttp_remotes (Deployment, Behind a proxy)",
    ),
    Row("encrypt encrypted encryption", keyword="the storage 'cookie://' seals sessions, under secret=…"),
    # The storage.
    Row(
        "store sessionstore backend engine sessiontype type storagetype redis redispool redisclient client connection "
        "conn memcached memcachedconn mongodb pool url uri storageurl dsn connectionstring cachealias interface",
        keyword="the storage is the second argument: setup(app, 'redis://localhost:6379/0')",
    ),
    Row(
        "prefix keyprefix namespace tablename collectionname table collection cachekeyprefix",
        keyword=f"it {_IN_URL} 'redis://localhost?prefix=…' or 'mysql://localhost/db?table=…'",
        ours="prefix=… table=… collection=…",
    ),
    Row(
        "poolsize maxconnections maxpoolsize maxsize poolmaxsize connectionlimit maxoverflow poolmax connections "
        "threads",
        keyword=f"pool_size= {_IN_URL} 'redis://localhost?pool_size=16'",
        ours="pool_size=16",
    ),
    Row(
        "ssl tls usessl usetls sslenabled tlsenabled sslmode ssldisabled ssltls sslcontext",
        keyword=f"tls= {_IN_URL} 'redis://localhost?tls=true'",
        ours="tls=true",
    ),
    Row("sslca sslcacerts sslcafile sslrootcert cafile cacerts ca sslcapath sslcadata tlscafile", ours="tls_ca=…"),
    Row("sslcert sslcertfile certfile cert sslcertificate tlscertificatekeyfile tlscertfile", ours="tls_cert=…"),
    Row("sslkey sslkeyfile keyfile tlskeyfile privatekey", ours="tls_key=…"),
    Row(
        "sslcertreqs sslcheckhostname sslverify sslverifycert sslverifyidentity tlsinsecure tlsverify verify "
        "verifyssl insecure skipverify tlsallowinvalidcertificates tlsallowinvalidhostnames",
        parameter="the certificate is always checked under tls=true; tls_ca= names another authority to trust",
    ),
    Row(
        "sockettimeout socketconnecttimeout connecttimeout connectiontimeout readtimeout writetimeout commandtimeout "
        "querytimeout busytimeout sockettimeoutms connecttimeoutms acquiretimeout",
        keyword=f"timeout= {_IN_URL} 'redis://localhost?timeout=2'",
        ours="timeout=2",
    ),
    Row(
        "db database dbname databasename dbnumber schema",
        keyword="the database is in the storage's URL, as in 'redis://localhost:6379/0'",
        parameter="the path names the database, as in redis://localhost/3 or mysql://localhost/shop",
    ),
    Row(
        "user username login usr password passwd pass pwd auth credentials",
        keyword="user and password are in the storage's URL, as in 'redis://user:password@localhost'",
        parameter="user and password stand before the host, as in redis://user:password@localhost",
    ),
    Row(
        "host hostname server servers port address endpoint",
        keyword="the host is in the storage's URL, as in 'redis://localhost:6379/0'",
        parameter="the host stands before the path, as in redis://localhost:6379",
    ),
    Row(
        "unixsocket unixsocketpath socket socketpath sock",
        parameter="redis+unix:///path/to.sock, or mysql://…?unix_socket=…, uses a socket",
        ours="unix_socket=…",
    ),
    Row(
        "sentinel sentinels mastername servicename master replicaset service",
        parameter="redis+sentinel://host:26379,host:26379/service/0 names sentinels and their service",
    ),
    Row(
        "charset encoding encodingerrors decoderesponses useunicode collation characterset",
        parameter=f"{_NOT_NEEDED}sessions are bytes to a server, and the connection chooses what it needs",
    ),
    Row(
        "minsize minconnections minpoolsize poolrecycle poolpreping poolreset healthcheckinterval retryontimeout "
        "retryonerror retry retries socketkeepalive keepalive tcpnodelay protocol clientname driverinfo libname "
        "isolationlevel echo singleconnectionclient localinfile poolclass binaryprefix nodelay ignoreexc "
        "checksamethread cache uri",
        parameter=f"{_NOT_NEEDED}connections are opened when they are needed, and replaced when they fail",
    ),
    # What a session is asked for.
    Row(
        "sid id sessionid sessionkey key identity setnewidentity setid getid",
        attribute="session.identity is its id, and session.renew() gives it a new one",
    ),
    Row(
        "destroy delete kill remove end terminate logout signout forget discard",
        attribute="session.invalidate() ends it",
    ),
    Row(
        "flush reset resetsession abandon",
        attribute="session.invalidate() ends it, and await new_session(request) begins another one",
    ),
    Row(
        "regenerate cyclekey rotate regenerateid regeneratetoken newid changeid changesessionid renewid newidentity "
        "migrate refreshid",
        attribute="session.renew() gives it a new id and keeps its data",
    ),
    Row("commit persistnow write store flushchanges", attribute="await session.save() stores it now"),
    Row("refresh load reread rollback revert", attribute="await session.reload() reads it again"),
    Row(
        "modified ismodified setmodified dirty isdirty ischanged changed setchanged markmodified touch accessed "
        "shouldsave shouldsetcookie",
        attribute="changes are seen, also in nested lists and dicts; session.changed() forces a save",
    ),
    Row("isnew", attribute="session.new is True if this request began it"),
    Row("isempty ispopulated", attribute="session.empty is True if it holds nothing"),
    Row(
        "createdat creationtime starttime created",
        attribute="session.created is when it began, and session.renew(login=True) begins it anew",
    ),
    Row(
        "lastaccess lastaccessed lastaccessedtime lastseen lastactivity updatedat lastused",
        attribute='it is not kept; session["seen"] = time.time() keeps it',
    ),
    Row(
        "user userid username currentuser account isauthenticated authenticated loggedin isloggedin role",
        attribute='its data are keys: session["user"] = … after session.renew(login=True), session.get("user") to read',
    ),
    Row(
        "login signin loginuser",
        attribute='session.renew(login=True) gives it a new id, and session["user"] = … says who it is',
    ),
    Row(
        "copy todict asdict dict tojson json mapping getdecoded encode decode data",
        attribute="dict(session) copies it into a dict, and session.update(…) puts data into it",
    ),
    Row("haskey has contains exists", attribute="'key' in session"),
    Row("getattribute getitem getvalue read", attribute='session.get("key")'),
    Row("set put setattribute setitem setvalue add", attribute='session["key"] = value'),
    Row(
        "flash flashes getflash flashedmessages",
        attribute='its data are keys: session["flash"] = [*session.get("flash", []), message]; see examples/flash.py',
    ),
    # Where sessions are kept.
    Row("postgres postgresql pgsql postgresql+asyncpg postgresql+psycopg postgresql+psycopg2 pg", scheme=_POSTGRESQL),
    Row(
        "redis+ssl redis+tls redistls redisssl keydbs dragonflys valkeys valkey+ssl valkey+tls",
        scheme="write rediss://, for Redis and Valkey over TLS",
    ),
    Row("redis+tcp redis+asyncio aioredis keydb dragonfly dragonflydb tcp", scheme="write redis://"),
    Row("sentinel redissentinel redis+sentinels valkey+sentinel sentinels", scheme="write redis+sentinel://"),
    Row("cluster rediscluster redis+clusters valkey+cluster", scheme="write redis+cluster://"),
    Row("unix redisunix redis+socket redissocket valkey+unix unix+redis", scheme="write redis+unix:///path/to.sock"),
    Row("memcache pymemcache pylibmc aiomcache memcached+tcp mc bmemcached", scheme="write memcached://"),
    Row(
        "mysql+aiomysql mysql+pymysql mysql+asyncmy mysql+mysqldb mysql+mysqlconnector mysql2 aiomysql pymysql "
        "mariadb+aiomysql mariadb+pymysql mariadb+mariadbconnector mariadb+asyncmy percona",
        scheme="write mysql:// or mariadb://",
    ),
    Row("mongo mongodb+motor mongo+srv motor mongodb+tcp", scheme="write mongodb:// or mongodb+srv://"),
    Row(
        "sqlite3 sqlite+aiosqlite sqlite+pysqlite aiosqlite file filesystem db",
        scheme="write sqlite:///file.db, or sqlite:////folder/file.db with four '/'",
    ),
    Row(
        "signedcookie signedcookies securecookie encryptedcookie client",
        scheme="write cookie://, with secret=… as a keyword of setup()",
    ),
    Row("mem inmemory memorystore dict local locmem simple null none", scheme="write memory://"),
    Row("http https", scheme="write the URL of a storage, as redis://localhost:6379/0"),
    Row(
        "dynamodb couchdb firestore cassandra scylla elasticsearch etcd mssql mssql+aioodbc oracle cockroachdb "
        "sqlalchemy peewee rabbitmq s3 dbm zodb neo4j duckdb libsql hazelcast couchbase",
        scheme=_OWN,
    ),
)
"""The one table. A word may stand in several rows, each of which answers for other places."""

Place = Literal["keyword", "attribute", "parameter", "scheme"]


def answer(word: str, place: Place) -> str:
    """Return what to write instead of a word from elsewhere, or nothing if the table does not know it there."""
    return next((found for row in _rows_of(word) if (found := getattr(row, place))), "")


def parameter(word: str, known: Container[str]) -> str:
    """Return what to write instead of a parameter of a URL that knows these, or nothing."""
    own = [one for row in _rows_of(word) for one in row.ours.split() if one.partition("=")[0] in known]
    return f"write {own[0]}" if own else answer(word, "parameter")


def _rows_of(word: str) -> list[Row]:
    plain = word.lower().replace("_", "").replace("-", "")
    bare = plain.removeprefix("session")
    spellings = dict.fromkeys((plain, bare, bare.removeprefix("cookie")))
    return [row for spelling in spellings for row in _by_word().get(spelling, ())]


@cache
def _by_word() -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for row in ROWS:
        for word in row.words.split():
            rows.setdefault(word, []).append(row)
    return rows

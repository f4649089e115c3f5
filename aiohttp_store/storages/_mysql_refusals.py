"""What to check, by the number of the error with which MySQL or MariaDB refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymysql.constants import CR, ER  # type: ignore[import-untyped]

from ._mysql_driver import error_code
from ._refusals import Unusable, is_tls_refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["advice"]

_PORT = "check that host and port are those of a MySQL or MariaDB server"
_LOGIN = "check the user, the password and from where the user may come; an account that demands TLS needs tls=true"
_PASSWORD = "log in as this user with the server's own client, and set a new password"  # noqa: S105  (it is none)
_PLUGIN = (
    "give the account one that the driver knows: mysql_native_password, caching_sha2_password or sha256_password; "
    "with tls=true or a unix socket also mysql_clear_password"
)
_RIGHTS = "grant SELECT, INSERT, UPDATE and DELETE on the table, and CREATE if it is to be made"
_DATABASE = "create the database, or check its name and what the user is granted on it"
_TLS = "check tls, tls_ca, tls_cert and tls_key, and that the server offers TLS"
_KIND = "this needs MySQL or MariaDB with InnoDB"

# PyMySQL has no names for those that are given as numbers: newer ones, and MariaDB's.
_ADVICE: Mapping[int | None, str] = {
    CR.CR_SERVER_HANDSHAKE_ERR: _PORT,
    CR.CR_SSL_CONNECTION_ERROR: _TLS,
    CR.CR_SECURE_AUTH: _PLUGIN,
    CR.CR_AUTH_PLUGIN_CANNOT_LOAD: _PLUGIN,
    CR.CR_AUTH_PLUGIN_ERR: _PLUGIN,
    ER.NOT_SUPPORTED_AUTH_MODE: _PLUGIN,
    ER.SERVER_IS_IN_SECURE_AUTH_MODE: _PLUGIN,
    1524: _PLUGIN,  # the server has not loaded the account's own
    ER.ACCESS_DENIED_ERROR: _LOGIN,
    1698: _LOGIN,  # the account knows no password, as with unix_socket
    3955: _LOGIN,  # blocked after too many wrong passwords
    ER.HOST_NOT_PRIVILEGED: _LOGIN,
    3118: "unlock the account",
    4151: "unlock the account",
    1820: _PASSWORD,
    1862: _PASSWORD,
    ER.HOST_IS_BLOCKED: "unblock this machine with FLUSH HOSTS, and raise max_connect_errors",
    3159: "add tls=true",
    ER.DBACCESS_DENIED_ERROR: _DATABASE,
    ER.BAD_DB_ERROR: _DATABASE,
    ER.TABLEACCESS_DENIED_ERROR: _RIGHTS,
    ER.COLUMNACCESS_DENIED_ERROR: _RIGHTS,
    ER.SPECIFIC_ACCESS_DENIED_ERROR: _RIGHTS,
    ER.PROCACCESS_DENIED_ERROR: _RIGHTS,
    1665: "set binlog_format=ROW or MIXED on the server",
    ER.UNKNOWN_STORAGE_ENGINE: _KIND,
    ER.PARSE_ERROR: _KIND,
    ER.UNKNOWN_SYSTEM_VARIABLE: _KIND,
    ER.NOT_SUPPORTED_YET: _KIND,
    ER.SP_DOES_NOT_EXIST: _KIND,
}


def advice(error: BaseException) -> str | None:
    """Return what to check, if the error is a refusal."""
    if isinstance(error, Unusable):
        return error.way_out
    return _TLS if is_tls_refusal(error) else _ADVICE.get(error_code(error))

"""Packaging; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'^__version__ = "(.+)"$', (here / "aiohttp_store/__init__.py").read_text(), re.MULTILINE)
if version is None:
    raise SystemExit("aiohttp_store/__init__.py names no version")

redis = ["redis>=5.0.1,<9"]
memcached = ["aiomcache>=0.8.2,<0.9"]
# PyMongo 4.13.1 blocks the event loop while it connects
mongodb = ["motor>=3.7", "pymongo>=4.13.2"]
# aiomysql 0.3 breaks on bytes with PyMySQL 1.2; MySQL 8 logins without TLS need cryptography
mysql = ["aiomysql>=0.3.2,<0.4", "PyMySQL>=1.1,<1.2", "cryptography>=42"]
cookie = ["cryptography>=42"]
# a private attribute makes its thread a daemon
sqlite = ["aiosqlite>=0.22.1,<0.23"]
speedups = ["orjson>=3.10", "hiredis>=3.0"]

setup(
    name="aiohttp_store",
    version=version[1],
    description="Sessions for aiohttp in Redis, Memcached, MongoDB, MySQL or SQLite, selected by a URL",
    long_description=(here / "README.rst").read_text(),
    long_description_content_type="text/x-rst",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["aiohttp_store", "aiohttp_store.*"]),
    # attributes of its requests, responses and cookie jars that are private are used, and set
    install_requires=["aiohttp>=3.13.3,<4"],
    extras_require={
        "redis": redis,
        "memcached": memcached,
        "mongodb": mongodb,
        "mysql": mysql,
        "cookie": cookie,
        "sqlite": sqlite,
        "speedups": speedups,
        "all": redis + memcached + mongodb + mysql + sqlite + cookie + speedups,
    },
    keywords=["aiohttp", "session", "cookie", "redis", "memcached", "mongodb", "mysql", "sqlite", "asyncio"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: AsyncIO",
        "Framework :: aiohttp",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Internet :: WWW/HTTP :: Session",
        "Typing :: Typed",
    ],
)

"""A large upload that goes through a temporary file, and a session that remembers it before the redirect.

Run it with: python examples/upload.py redis://localhost:6379/0
"""

import argparse
import asyncio
import hashlib
import secrets
import tempfile
from html import escape
from typing import IO

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

import aiohttp_store

LIMIT = 32 << 20  # bytes of one request
CHUNK = 256 << 10

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Uploads</title>
<h1>Uploads</h1>
<ul>{uploads}</ul>
<form method="post" enctype="multipart/form-data">
<p><label>File <input name="file" type="file" required></label>
<p><button>Upload</button>
</form>
"""


async def index(request: web.Request) -> web.Response:
    uploads = (await aiohttp_store.get_session(request)).get("uploads", {}).values()
    items = [f"<li>{escape(one['name'])}: {one['size']} bytes, SHA-256 {one['sha256']}</li>" for one in uploads]
    page = PAGE.format(uploads="".join(items) or "<li>nothing yet</li>")
    return web.Response(text=page, content_type="text/html", headers={"Cache-Control": "no-store"})


async def upload(request: web.Request) -> web.Response:
    refuse_too_large(request.content_length or 0)
    session = await aiohttp_store.get_session(request)  # an app of yours asks here who may upload, before it reads
    with tempfile.TemporaryFile() as file:
        try:
            uploaded = await receive(request, file)
        except (ValueError, ConnectionError, web.RequestPayloadError, HttpProcessingError) as error:
            raise web.HTTPBadRequest(text="the upload is malformed or was cut off") from error
        # Here an app of yours takes the file to where it belongs.
    # A key of its own for each: what other requests of this visitor have stored meanwhile is merged key by key.
    session.setdefault("uploads", {})[secrets.token_hex(8)] = uploaded
    try:
        await session.save()
    except aiohttp_store.SessionGone:
        raise web.HTTPForbidden(text="you have logged out during the upload") from None
    raise web.HTTPSeeOther("/")


async def receive(request: web.Request, file: IO[bytes]) -> dict[str, str | int]:
    """Write what the form's field holds to the file, and tell what it is."""
    if request.content_type != "multipart/form-data":
        raise web.HTTPUnsupportedMediaType(text="send a form, as multipart/form-data")
    form = await request.multipart()
    part = await form.next()
    if not isinstance(part, BodyPartReader) or part.name != "file":
        raise ValueError("the form has one field, 'file'")
    size, digest = 0, hashlib.sha256()
    while chunk := await part.read_chunk(CHUNK):
        size += len(chunk)
        refuse_too_large(size)  # a chunked body has no Content-Length
        digest.update(chunk)
        await asyncio.to_thread(file.write, chunk)  # a disk may make it wait
    if await form.next() is not None:  # also where the end is missing
        raise ValueError("the form has one field, 'file'")
    name = (part.filename or "")[:100].encode(errors="replace").decode()  # it may hold bytes that are no text
    return {"name": name, "size": size, "sha256": digest.hexdigest()}


def refuse_too_large(size: int) -> None:
    if size > LIMIT:
        raise web.HTTPRequestEntityTooLarge(LIMIT, size)


async def logout(request: web.Request) -> web.Response:
    (await aiohttp_store.get_session(request)).invalidate()
    raise web.HTTPSeeOther("/")


def make_app(storage: str) -> web.Application:
    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_post("/", upload)
    app.router.add_post("/logout", logout)
    aiohttp_store.setup(app, storage)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the upload example.")
    parser.add_argument("storage", nargs="?", default="memory://", help="as redis://localhost:6379/0")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    try:
        web.run_app(make_app(options.storage), host="127.0.0.1", port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()

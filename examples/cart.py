"""A cart that takes ten additions at the same time and loses none of them.

Run it with: python examples/cart.py redis://localhost:6379/0
"""

import argparse
import json

from aiohttp import web
from aiohttp.http import HttpProcessingError

import aiohttp_store

GOODS = ("Tea", "Milk", "Sugar", "Lemon", "Honey", "Bread", "Butter", "Jam", "Eggs", "Salt")

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ten at once</title>
<style>
  :root { color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }
  body { max-width: 34rem; margin: auto; padding: 1rem } button { font: inherit; padding: .5rem 1rem }
</style>
<h1>Ten at once</h1>
<p>The button sends ten requests of one session at the same time.</p>
<p><button id="fire">Add ten goods</button>
<p>In your cart: <strong id="total">TOTAL</strong>
<p>Arrived: <output id="result" for="fire">none yet</output>
<form method="post" action="/empty"><button>Empty the cart</button></form>
<script>
  const show = (id, text) => { document.getElementById(id).textContent = text; };
  const add = async item => {
    const response = await fetch("/add", {method: "POST", body: new URLSearchParams({item})});
    return (await response.json()).number;
  };
  document.getElementById("fire").addEventListener("click", async () => {
    show("result", "sending");
    try {
      const numbers = await Promise.all(GOODS.map(add));
      const held = await (await fetch("/cart")).json();  // what the server has, and not what we believe
      const arrived = new Set(numbers.filter(number => held.lines[number]));
      show("total", held.total);
      show("result", `${arrived.size} of ${numbers.length}`);
    } catch (error) {
      show("result", `failed: ${error.message}`);
    }
  });
</script>
"""


async def index(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    session.setdefault("total", 0)  # begins the session: ten first requests at once would begin ten
    page = PAGE.replace("TOTAL", str(session["total"])).replace("GOODS", json.dumps(GOODS))
    return web.Response(text=page, content_type="text/html", headers={"Cache-Control": "no-store"})


def count(session: aiohttp_store.Session) -> int:
    session["total"] = session.get("total", 0) + 1
    return int(session["total"])


async def fields_of(request: web.Request) -> dict[str, str]:
    """Give the form's fields, where aiohttp would answer 500 to a form that cannot be read."""
    try:
        fields = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        "".join(fields.values()).encode()  # some encodings have characters that no other has
    except (ValueError, LookupError, RuntimeError, web.RequestPayloadError, HttpProcessingError) as error:
        raise web.HTTPBadRequest(text="the form cannot be read") from error
    return fields


async def add(request: web.Request) -> web.Response:
    item = (await fields_of(request)).get("item")
    if item not in GOODS:
        raise web.HTTPBadRequest(text="there is no such thing")
    session = await aiohttp_store.get_session(request)
    # All ten change this one number, so each must see what the others made of it.
    number = await session.apply(count)
    # Here each sets a key of its own, and these are merged, nested or not.
    session.setdefault("lines", {})[str(number)] = item
    return web.json_response({"number": number})


async def cart(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    return web.json_response({"total": session.get("total", 0), "lines": session.get("lines", {})})


async def empty(request: web.Request) -> web.Response:
    session = await aiohttp_store.get_session(request)
    session.update(total=0, lines={})
    raise web.HTTPSeeOther("/")


def make_app(storage: str) -> web.Application:
    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_get("/cart", cart)
    app.router.add_post("/add", add)
    app.router.add_post("/empty", empty)
    aiohttp_store.setup(app, storage)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the cart example.")
    parser.add_argument("storage", nargs="?", default="memory://", help="as redis://localhost:6379/0")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    options = parser.parse_args()
    try:
        web.run_app(make_app(options.storage), host="127.0.0.1", port=options.port)
    except (aiohttp_store.ConfigError, OSError) as error:  # a wrong URL, a port that is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()

// Express, with express-session in Redis if there is a URL: node express.js PORT [URL]
"use strict";

const express = require("express");

const BACKLOG = 2048;
const DATA = {
  user: "u-4711",
  name: "Ann Example",
  roles: ["reader", "writer"],
  cart: { tea: 2, milk: 1 },
  n: 0,
};

async function main(port, url) {
  const app = express();
  let sessionOf = () => DATA;
  if (url) {
    const session = require("express-session");
    const { RedisStore } = require("connect-redis");
    const client = require("redis").createClient({ url });
    await client.connect();
    app.use(
      session({
        store: new RedisStore({ client }),
        secret: "a secret of no importance",
        resave: false,
        saveUninitialized: false,
      }),
    );
    sessionOf = (request) => request.session;
  }
  app.get("/untouched", (request, response) => response.type("text").send("ok"));
  app.get("/read", (request, response) => response.type("text").send(sessionOf(request).user));
  app.get("/write", (request, response) => {
    const session = sessionOf(request);
    session.n += 1;
    response.type("text").send(session.user);
  });
  app.get("/begin", (request, response) => {
    Object.assign(sessionOf(request), DATA);
    response.type("text").send("ok");
  });
  app.listen(Number(port), "127.0.0.1", BACKLOG);
}

main(...process.argv.slice(2));

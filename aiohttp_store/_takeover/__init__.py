"""`?migrate=`: sessions that aiohttp-session wrote become sessions of this package, one by one."""

-- Sends the Cookie headers of a file in turn, and ends with the results as one line of JSON.
-- wrk -s wrk.lua http://host:port/path -- FILE

local threads = 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

function init(args)
   requests = {}
   for cookie in io.lines(args[1]) do
      requests[#requests + 1] = wrk.format("GET", nil, { Host = wrk.headers["Host"], Cookie = cookie })
   end
   -- Threads that all began with the first session would meet at every one.
   turn = math.floor(#requests / 2) * number
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      e.connect + e.read + e.write + e.status + e.timeout))
end

"""uWebSockets (through socketify): what is said at /publish is published on the topic that all others subscribe to.

Runs in an environment of its own (bench/install-peers.sh). python uws.py PORT
"""

import sys

from socketify import App, AppListenOptions, CompressOptions

LIMITS = {"compression": CompressOptions.DISABLED, "idle_timeout": 0, "max_backpressure": 1 << 20}
app = App()
app.ws("/ws", {**LIMITS, "open": lambda ws: ws.subscribe("all")})
app.ws("/publish", {**LIMITS, "message": lambda ws, message, opcode: app.publish("all", message, opcode)})
app.listen(AppListenOptions(port=int(sys.argv[1]), host="127.0.0.1"))
app.loop.uv_loop.run()  # no coroutines here: app.run() would look 1,000 times a second whether asyncio has work

"""Serve the shop with gevent: ``python -m support.gevent_server URL`` prints the port."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402 - gevent wants to be first

from gevent.pywsgi import WSGIServer  # noqa: E402

from support.flask_shop import create_app  # noqa: E402

server = WSGIServer(("127.0.0.1", 0), create_app(sys.argv[1]), log=None, error_log=None)
server.start()
print(server.server_port, flush=True)  # noqa: T201 - whoever started it reads it
server.serve_forever()

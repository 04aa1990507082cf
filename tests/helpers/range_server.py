"""An HTTP server on this machine that gives out byte ranges of files, as plain files and as GCS."""

import contextlib
import http.server
import re
import threading
import urllib.parse


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        server.requests.append((path, self.headers.get("Range")))
        # The JSON API of Google Cloud Storage: /storage/v1/b/BUCKET/o/OBJECT?alt=media
        name = re.sub(r"^/storage/v1/b/([^/]+)/o/", r"/\1/", path).lstrip("/")
        file = server.folder / name
        if name.startswith("private/"):
            self.answer(403, b'{"error": {"code": 403, "message": "no access for you"}}')
        elif server.failures:
            self.answer(server.failures.pop(), b"try again")
        elif not file.is_file():
            self.answer(404, b'{"error": {"code": 404, "message": "not found"}}')
        else:
            data = file.read_bytes()
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
            if not match:
                self.answer(200, data)
                return
            first, last = match.groups()
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            self.answer(206, data[start:stop], f"bytes {start}-{stop - 1}/{len(data)}")

    def answer(self, code, body, content_range=None):
        self.send_response(code)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serve(folder):
    """Serves `folder`; yields the server with `url`, `requests` [(path, range)] and `failures`.

    `failures`: status codes that answer the next requests.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.requests, server.failures = folder, [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

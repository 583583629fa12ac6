"""Getting some bytes over HTTP(S): bounded in size, time, redirects and attempts.

``requests`` is imported when first needed: in the guest that takes seconds, and a config whose documents are
all ``data:`` URLs does without.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from secex_firstboot.basic.errors import Refusal
from secex_firstboot.ignition.config import Proxy, Timeouts

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter

# The initramfs has none (dracut/trace-imports.py), and nothing here asks what encoding a text may have.
warnings.filterwarnings("ignore", "Unable to find acceptable character detection")

_REDIRECTS = 5
_CHUNK = 8192  # bytes
_WORTH_RETRYING = {408, 425, 429}  # and all 5xx: RFC 9110, RFC 8470, RFC 6585


@dataclass(frozen=True)
class Network:
    """How patiently to ask. Times in seconds."""

    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 30.0
    connect_timeout: float = 10.0
    attempt_timeout: float = 60.0  # the whole of one attempt, beyond the wait for the response headers
    total: float = float("inf")  # all attempts together
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Request:
    what: str  # for messages: the URL may hold a secret
    url: str
    headers: Mapping[str, str]
    limit: int  # bytes


@dataclass(frozen=True)
class Client:
    network: Network
    timeouts: Timeouts
    proxy: Proxy
    authorities: str | bool  # path of a PEM bundle, or True for the system's
    on_attempt: Callable[[str], None]

    def get(self, request: Request) -> bytes:
        """The body of the answer, undecoded. Raises Refusal, after the last attempt or when none can help."""
        # urllib3 logs each path with its query on debug level.
        logging.getLogger("urllib3").setLevel(logging.INFO)
        host, reason = _host(request), ""
        total = min(self.network.total, self.timeouts.http_total or float("inf"))
        deadline = time.monotonic() + total
        for attempt in range(1, self.network.attempts + 1):
            self.on_attempt(f"{request.what} from {host}: attempt {attempt} of {self.network.attempts}")
            budget = self.timeouts.http_response_headers + self.network.attempt_timeout
            try:
                return _within(min(budget, deadline - time.monotonic()), lambda: self._follow(request))
            except _Transient as trouble:
                reason = str(trouble)
            wait = self._wait_after(attempt)
            if attempt == self.network.attempts or time.monotonic() + wait >= deadline:
                break
            self.network.sleep(wait)
        raise Unreachable(
            "SX-HOSTKEY-09",
            f"{request.what} could not be fetched from {host} in {attempt} attempts: {reason}",
            "check the URL, the guest's network and the server",
        )

    def _wait_after(self, attempt: int) -> float:
        longest = min(self.network.first_wait * 2.0 ** (attempt - 1), self.network.longest_wait)
        return longest * random.SystemRandom().uniform(0.5, 1.0)

    def _follow(self, request: Request) -> bytes:
        """One attempt. On the adapter, as a session reads the bodies of redirects without a bound."""
        from requests.adapters import HTTPAdapter

        url, headers = request.url, request.headers
        with closing(HTTPAdapter()) as adapter:
            for _ in range(_REDIRECTS + 1):
                with self._ask(adapter, request, url, headers) as response:
                    if not response.is_redirect:
                        return _body(request, response)
                    target = _redirected(request, url, response.headers["Location"])
                # Headers may hold a token: they are for the server the config names.
                headers = headers if _origin(url) == _origin(target) else {}
                url = target
        raise Refusal(
            "SX-HOSTKEY-10",
            f"{request.what}: redirected more than {_REDIRECTS} times",
            "give the document's own URL",
        )

    def _ask(
        self, adapter: HTTPAdapter, request: Request, url: str, headers: Mapping[str, str]
    ) -> requests.Response:
        import requests
        from urllib3.exceptions import HTTPError

        invalid = Refusal(
            "SX-HOSTKEY-11",
            f"{request.what}: its URL, a header or the proxy is not valid",
            "correct the config",
        )
        ours = {"User-Agent": "secex-firstboot", "Accept-Encoding": "identity"}
        try:
            prepared = requests.Request("GET", url, headers={**ours, **headers}).prepare()
        except ValueError:
            raise invalid from None
        silence = self.timeouts.http_response_headers or self.network.attempt_timeout
        try:
            return adapter.send(
                prepared,
                stream=True,
                timeout=(self.network.connect_timeout, silence),
                proxies=_proxies(self.proxy, url),
                verify=self.authorities,
            )
        except requests.exceptions.InvalidURL:  # the proxy's, or a host name that cannot be one
            raise invalid from None
        except requests.exceptions.SSLError:
            raise _Transient("no TLS connection, or the server's certificate is not trusted") from None
        except requests.exceptions.Timeout:
            raise _Transient("no answer in time") from None
        except (requests.RequestException, HTTPError):
            raise _Transient("no connection, or no valid answer") from None
        except ValueError:  # a header's
            raise invalid from None
        except OSError:  # requests' own, when the authorities' bundle is not there
            raise Refusal(
                "SX-HOSTKEY-12",
                f"{request.what}: there is no certificate authority to trust for https",
                "name yours in ignition.security.tls.certificateAuthorities or use a data URL",
            ) from None


class Unreachable(Refusal):
    """No attempt got an answer that says anything; from another machine, one may."""

    passing = True


class _Transient(Exception):
    """Another attempt may help. The text is for the user: no URL, no content."""


def _within(seconds: float, work: Callable[[], bytes]) -> bytes:
    """``work``'s result, if it comes in time.

    A socket's timeout bounds each wait, not their sum: a server that sends a byte now and then would hold us
    for hours. The thread left behind ends with its own timeouts or with the process.
    """
    outcome: Future[bytes] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(max(seconds, 0))
    except TimeoutError:
        raise _Transient("no complete answer in time") from None


def _body(request: Request, response: requests.Response) -> bytes:
    from urllib3.exceptions import HTTPError

    status = response.status_code
    if status >= 500 or status in _WORTH_RETRYING:
        raise _Transient(f"the server answered {status}")
    if status != 200:
        raise Refusal(
            "SX-HOSTKEY-13",
            f"{request.what}: {_host(request)} answered {status}",
            "check the URL and the server",
        )
    body = b""
    try:
        while len(body) <= request.limit and (part := response.raw.read(_CHUNK, decode_content=False)):
            body += part
    except (HTTPError, OSError):
        raise _Transient("the answer broke off") from None
    if len(body) > request.limit:
        raise Refusal(
            "SX-HOSTKEY-14", f"{request.what} is larger than {request.limit} bytes", "check the URL"
        )
    if response.headers.get("Content-Length", str(len(body))) != str(len(body)):
        raise _Transient("the answer broke off")
    return body


def _redirected(request: Request, url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        if _origin(target)[0] in ("https", _origin(url)[0]):
            return target
    except ValueError:
        pass
    raise Refusal(
        "SX-HOSTKEY-15", f"{request.what}: redirected to where it may not go", "give the document's own URL"
    )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _host(request: Request) -> str:
    """The host alone, which whoever carries our packets sees anyway."""
    try:
        host = urlsplit(request.url).hostname or ""
    except ValueError:
        host = ""
    if not host or not host.isprintable():
        raise Refusal("SX-HOSTKEY-16", f"{request.what}: its URL names no host", "correct the config")
    return host


def _proxies(proxy: Proxy, url: str) -> dict[str, str]:
    from requests.utils import should_bypass_proxies

    if proxy.no_proxy and should_bypass_proxies(url, no_proxy=",".join(proxy.no_proxy)):
        return {}
    chosen = {"http": proxy.http_proxy, "https": proxy.https_proxy or proxy.http_proxy}
    return {scheme: address for scheme, address in chosen.items() if address}

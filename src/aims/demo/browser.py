"""A person's browser, as far as the pages of a login and a consent need one: cookies, forms, and where it is sent."""

from __future__ import annotations

import html
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import httpx2

SECONDS: Final = 15.0
NAVIGATION: Final = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-site": "none"}
SUBMISSION: Final = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document", "sec-fetch-site": "same-origin"}


@dataclass(slots=True)
class Page:
    """What a browser shows, or where it was sent."""

    status: int
    text: str
    location: str = ""

    @property
    def code(self) -> str:
        """Our code on an error page."""
        found = re.search(r"<code>([a-z]+\.[a-z_0-9]+)</code>", self.text)
        return found[1] if found else ""

    @property
    def words(self) -> str:
        """What a person reads."""
        text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", self.text, flags=re.DOTALL)
        return html.unescape(re.sub(r"\s+", " ", text)).strip()

    def fields(self) -> dict[str, str]:
        """The hidden fields of the page's first form."""
        form = re.search(r"<form.*?</form>", self.text, re.DOTALL)
        found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', form[0] if form else "")
        return {name: html.unescape(value) for name, value in found}


@dataclass(slots=True)
class Browser:
    """One browser with its cookies."""

    ca: Path
    cookies: dict[str, str] = field(default_factory=dict)

    async def go(self, url: str) -> Page:
        """Navigate to a page, as a person does."""
        return await self._request("GET", url, NAVIGATION)

    async def submit(self, page_url: str, action: str, fields: dict[str, str]) -> Page:
        """Send a form of a page that this server showed."""
        return await self._request("POST", urljoin(page_url, action), SUBMISSION, fields)

    async def _request(
        self, method: str, url: str, headers: dict[str, str], fields: dict[str, str] | None = None
    ) -> Page:
        context = ssl.create_default_context(cafile=str(self.ca))
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = headers | ({"cookie": cookie} if cookie else {})
        async with httpx2.AsyncClient(verify=context, trust_env=False, timeout=SECONDS) as http:
            answer = await http.request(method, url, headers=sent, data=fields)
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
        return Page(answer.status_code, answer.text, answer.headers.get("location", ""))

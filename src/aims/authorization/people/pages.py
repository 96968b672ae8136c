"""The pages that people see: HTML without any script, from templates that escape whatever is put into them.

The policy of every page allows nothing but its own style, whose digest stands in it, and forms that lead where the page
says: to this server, and on the page of consent also to where the answer goes (browsers hold a redirect after a form
against ``form-action``). No page may be framed, cached, or named to others as a referrer.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from aims.authorization.people import redirect
from aims.authorization.people.consent import Shown
from aims.authorization.people.errors import STATUS
from aims.authorization.people.login import Session
from aims.authorization.people.store import Given, Pending
from aims.errors import AimsError

STYLE: Final = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; color: #1b1b1f;
  background: #fff }
h1 { font-size: 1.4rem } dt { font-weight: 600 } dd { margin: 0 0 .6rem } code { overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .4rem .6rem .4rem 0;
  border-bottom: 1px solid #ccc; vertical-align: top }
button { font: inherit; padding: .5rem 1.2rem; border: 1px solid #555; border-radius: .3rem; background: #fff;
  cursor: pointer; margin-right: .6rem }
button.yes { background: #14532d; border-color: #14532d; color: #fff } form { display: inline }
button:focus-visible, a:focus-visible { outline: 3px solid #1d4ed8; outline-offset: 2px }
"""

_STYLE_DIGEST: Final = base64.b64encode(hashlib.sha256(STYLE.encode("utf-8")).digest()).decode("ascii")
_FIXED: Final = (
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """A finished page."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("aims.authorization.people"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
    )
    environment.filters["moment"] = _moment
    return environment


def link_page(secret: str, name: str, csrf: str) -> Page:
    """The page behind a login link: one button."""
    return _page("login.html", secret=secret, name=name, csrf=csrf)


def quiet_page() -> Page:
    """What a fetch of a link gets that is nobody's navigation: nothing happened."""
    return _page("quiet.html", what="login link")


def unasked_page() -> Page:
    """The same for a request of an agent. It is an error, so that no browser shows it later in the page's place."""
    return _page("quiet.html", status=403, what="request of an agent")


def consent_page(shown: Shown, session: Session) -> Page:
    """The page of consent, in words."""
    pending = shown.pending
    return _page(
        "consent.html",
        forms_to=_form_target(pending.redirect_uri),
        person=session.person.name,
        csrf=session.csrf,
        id=pending.id,
        shown=shown.digest,
        agent=shown.agent.name,
        agent_id=str(shown.agent.spiffe_id),
        owner=shown.agent.owner,
        tool=shown.resource.name,
        url=shown.resource.url,
        scopes=[(scope, scope in shown.resource.high) for scope in shown.scopes],
        details=[sorted((name, str(value)) for name, value in one.items()) for one in shown.details],
        until=shown.until,
        returns_to=redirect.origin(pending.redirect_uri),
    )


def grants_page(given: tuple[Given, ...], waiting: tuple[Pending, ...], session: Session) -> Page:
    """What somebody has given and may take back, and what waits for a decision."""
    return _page("grants.html", given=given, waiting=waiting, person=session.person.name, csrf=session.csrf)


def error_page(error: AimsError, status: int = 0) -> Page:
    """A refusal in words; nothing of what the request said is repeated. ``status`` 0 is what the reason says."""
    return _page(
        "error.html",
        status=status or STATUS.get(error.reason, 400),
        sentence=error.sentence,
        hint=error.hint,
        code=error.code,
    )


def _page(template: str, *, status: int = 200, forms_to: str = "", **values: Any) -> Page:
    text = _environment().get_template(template).render(style=STYLE, **values)
    allowed = f"'self' {forms_to}".strip()
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; form-action {allowed}; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    headers = ((b"content-security-policy", policy.encode("ascii")), *_FIXED)
    return Page(status, text.encode("utf-8"), headers)


def _form_target(uri: str) -> str:
    # the grammar of a policy has no IPv6 addresses: there the scheme has to do
    place = redirect.origin(uri)
    return place.partition("//")[0] if "[" in place else place


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %B %Y, %H:%M UTC")

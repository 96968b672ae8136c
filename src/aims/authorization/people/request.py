"""The authorization request (OAuth 2.1 4.1.1) as the agent sent it through a browser.

    1. every parameter once (``resource`` may repeat, and then is refused)     no redirect
    2. the client is a registered, active agent                                no redirect
    3. the redirect URI is one of its own                                      no redirect
    4. response_type                                                           from here on by redirect
    5. code_challenge, method S256
    6. one resource that is registered and takes access tokens
    7. scope: something, known to the resource, within the agent's ceiling; authorization_details

Who the person is comes after: nothing here depends on it. In step 7 the ceiling is the widest that the agent has in any
posture, because nobody knows yet in which it will collect the code; the token endpoint cuts again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from aims.authorization import authorization_details
from aims.authorization import form as forms
from aims.authorization import scope as scopes
from aims.authorization.authorization_details import Details
from aims.authorization.errors import AuthorizationError
from aims.authorization.people import pkce, redirect
from aims.authorization.people.errors import PeopleError
from aims.jose.jwk import is_thumbprint
from aims.policy.errors import PolicyError
from aims.policy.rows import Resource
from aims.policy.tables import Tables
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.memory import Registry
from aims.provisioning.registry.model import Kind, State, Workload

MAX_QUERY: Final = 8192
MAX_STATE: Final = 512
_PROFILES: Final = frozenset({"oauth-bound", "oauth-signed", "bearer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressee:
    """Who gets the answer: an active agent, at a redirect URI of its own. ``state`` is the agent's own mark."""

    agent: Workload
    redirect_uri: str
    state: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """A request that may be shown to a person. ``scopes`` are those that can be granted, never more than asked."""

    addressee: Addressee
    resource: Resource
    audience: str
    scopes: frozenset[str]
    asked: frozenset[str]
    details: Details
    challenge: str
    dpop_jkt: str | None

    @property
    def agent(self) -> Workload:
        return self.addressee.agent

    @property
    def digest(self) -> str:
        """What tells two requests apart; a page that is loaded again has the same."""
        parts = (
            str(self.agent.spiffe_id),
            self.addressee.redirect_uri,
            self.addressee.state,
            self.audience,
            sorted(self.scopes),
            list(self.details),
            self.challenge,
            self.dpop_jkt,
        )
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def read(query: bytes) -> forms.Form:
    """Step 1: read the query of the authorization endpoint.

    Raises:
        PeopleError: ``request_parameters``.
    """
    if len(query) > MAX_QUERY:
        raise PeopleError("request_parameters", f"{len(query)} octets")
    try:
        return forms.read(query, forms.CONTENT_TYPE.decode("ascii"))
    except AuthorizationError as error:
        raise PeopleError("request_parameters", str(error)) from error


def addressee(form: forms.Form, registry: Registry, registered: Iterable[str]) -> Addressee:
    """Steps 2 and 3. ``registered`` are the redirect URIs of the agent that ``client_of`` names.

    Raises:
        PeopleError: ``request_client``, ``request_redirect``, ``request_parameters``.
    """
    agent = client_of(form, registry)
    uri = form.get("redirect_uri")
    # the only one of an agent is not taken for granted: what is not said is not meant
    if uri is None or not redirect.allowed(uri, registered):
        raise PeopleError("request_redirect", ascii((uri or "")[:200]))
    state = form.get("state")
    if state is not None and len(state) > MAX_STATE:
        raise PeopleError("request_parameters", "state")
    return Addressee(agent=agent, redirect_uri=uri, state=state)


def client_of(form: forms.Form, registry: Registry) -> Workload:
    """Step 2: the agent that ``client_id`` names, by its SPIFFE ID.

    Raises:
        PeopleError: ``request_client``.
    """
    try:
        agent = registry.workload_by_id(form.get("client_id") or "")
    except ProvisioningError as error:
        raise PeopleError("request_client", str(error)) from error
    if agent.kind is not Kind.AGENT or agent.state is not State.ACTIVE:
        raise PeopleError("request_client", f"{agent.name} is {agent.kind}, {agent.state}")
    return agent


def examine(form: forms.Form, to: Addressee, tables: Tables) -> AuthorizationRequest:
    """Steps 4 to 7.

    Raises:
        PeopleError: ``response_type``, ``challenge``, ``request_parameter``, ``request_target``, ``request_scope``,
            ``request_details``; each is for the agent to know, by redirect.
    """
    # 4. response_type
    if form.get("response_type") != "code" or form.get("response_mode") not in {None, "query"}:
        raise PeopleError("response_type")
    # a request by reference or by value would be another request than the one that is examined here
    if form.get("request") is not None or form.get("request_uri") is not None:
        raise PeopleError("request_parameter", "request or request_uri")
    # 5. code_challenge, method S256
    challenge = pkce.challenge(form.get("code_challenge"), form.get("code_challenge_method"))
    jkt = form.get("dpop_jkt")
    if jkt is not None and not is_thumbprint(jkt):
        raise PeopleError("request_parameter", "dpop_jkt")
    # 6. one resource that is registered and takes access tokens
    resource, audience = _target(form, tables)
    # 7. scope and authorization_details
    asked = _asked(form, resource)
    granted = asked & widest(tables, to.agent, resource.name)
    if not granted:
        raise PeopleError("request_scope", "nothing is left within the agent's ceiling")
    return AuthorizationRequest(
        addressee=to,
        resource=resource,
        audience=audience,
        scopes=granted,
        asked=asked,
        details=_details(form, tables, resource, granted),
        challenge=challenge,
        dpop_jkt=jkt,
    )


def widest(tables: Tables, agent: Workload, resource: str) -> frozenset[str]:
    """Return what the agent may hold at a resource in one posture or another."""
    found: frozenset[str] = frozenset()
    for posture in tables.postures:
        found |= tables.ceiling(agent.spiffe_id, posture, resource).scopes
    return found


def _target(form: forms.Form, tables: Tables) -> tuple[Resource, str]:
    wanted = form.all("resource")
    if len(wanted) != 1:
        raise PeopleError("request_target", f"{len(wanted)} resources")
    try:
        resource = tables.resource_for(wanted[0])
    except PolicyError as error:
        raise PeopleError("request_target", str(error)) from error
    if resource.profile not in _PROFILES:
        raise PeopleError("request_target", f"profile {resource.profile}")
    return resource, wanted[0]


def _asked(form: forms.Form, resource: Resource) -> frozenset[str]:
    text = form.get("scope")
    if text is None:
        raise PeopleError("request_scope", "none")
    try:
        asked = scopes.parse(text)
    except AuthorizationError as error:
        raise PeopleError("request_scope", str(error)) from error
    if unknown := sorted(asked - set(resource.scopes)):
        raise PeopleError("request_scope", f"{resource.name} has no {unknown}")
    return asked


def _details(form: forms.Form, tables: Tables, resource: Resource, granted: frozenset[str]) -> Details:
    text = form.get("authorization_details")
    if text is None:
        return ()
    try:
        details = authorization_details.parse(text)
        authorization_details.check(details, tables, resource.name, granted)
    except AuthorizationError as error:
        raise PeopleError("request_details", str(error)) from error
    return details

"""The administrator's calls on people: who there is, login links, and where codes for agents may be sent."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from aims.audit.record import recorder
from aims.authorization.people import redirect, store
from aims.authorization.people.errors import PeopleError
from aims.authorization.people.login import Link, LoginService
from aims.authorization.people.store import Person
from aims.provisioning.registry.model import Kind
from aims.server.admin import AdminCall, AdminRoute, Body, Nothing, Text, reading
from aims.server.people_routes import LOGIN, Browsed
from aims.storage.intent import Plan
from aims.storage.write import Outcome, Verdict, Write

MAX_REDIRECTS: Final = 16


class PersonName(Body, frozen=True):
    """A person, by the name that the administrator gave."""

    name: Text


class Redirects(Body, frozen=True):
    """All redirect URIs of an agent; none takes away what there was."""

    agent: Text
    redirect_uris: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_REDIRECTS)]


class PeopleCalls:
    """The administrator's calls over ``core``."""

    def __init__(self, core: Browsed) -> None:
        self._core = core
        self._login = LoginService(core, core.database)

    def routes(self) -> tuple[AdminRoute, ...]:
        """Every route about people."""
        return (
            AdminRoute("person.create", "POST", "/admin/v1/people", PersonName, True, self._create),
            AdminRoute("person.list", "GET", "/admin/v1/people", Nothing, False, self._list),
            AdminRoute("person.link", "POST", "/admin/v1/people/link", PersonName, True, self._link),
            AdminRoute("client.redirects", "POST", "/admin/v1/clients/redirects", Redirects, True, self._redirects),
        )

    async def _create(self, call: AdminCall, body: PersonName) -> Plan[object]:
        plan = self._login.create(body.name, call.cause)
        return plan.shaped(_person)

    async def _list(self, call: AdminCall, _: Nothing) -> Plan[object]:
        people = await self._core.database.read(store.people)
        return reading(call, "person.list", [_person(one) for one in people])

    async def _link(self, call: AdminCall, body: PersonName) -> Plan[object]:
        plan = await self._login.link(body.name, call.cause)

        def shown(link: Link) -> object:
            return {"url": f"{self._core.public_url}{LOGIN}?link={link.secret}", "expires": link.expires}

        return plan.shaped(shown)

    async def _redirects(self, call: AdminCall, body: Redirects) -> Plan[object]:
        agent = self._core.registry.workload(body.agent)
        if agent.kind is not Kind.AGENT:
            raise PeopleError("request_client", agent.name)
        uris = tuple(dict.fromkeys(redirect.check(uri) for uri in body.redirect_uris))
        record = recorder(
            refuse="client.refuse",
            type="client.change",
            outcome="success",
            client_id=str(agent.spiffe_id),
            resource=str(agent.spiffe_id),
            details={"redirect_uris": len(uris)},
            **call.record_fields("client.redirects"),
        )
        write = Write(record=record, effects=store.redirects_replaced(agent.name, uris))

        def answer(outcome: Outcome) -> object:
            if outcome.verdict is not Verdict.COMMITTED:
                raise PeopleError("redirect_malformed", outcome.verdict)
            return {"agent": agent.name, "redirect_uris": list(uris)}

        return Plan(write, answer)


def _person(person: Person) -> dict[str, object]:
    return {"id": person.sub, "name": person.name, "created": person.created}

"""The audit record: one canonical JSON object for each decision, defined by ``record.schema.json``.

``body`` builds a record without its place in the log; the sequencer adds the place later. The schema file is the only
definition: which members exist, what they hold, and for which types of record the seven members that AIMS demands
(agent, subject, resource, action with decision, correlation, posture or risk, cause) must not be null. It is compiled
once at import, because a record is built for every request.

Tokens, secrets, prompts and tool arguments have no place in a record; a person appears only as a commitment
(``aims.audit.people``). What an unauthenticated caller says about itself goes into ``claimed`` and nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Annotated, Any, Final, Literal, Required, TypedDict, Unpack

import msgspec

from aims.audit.canonical import MAX_INTEGER, decode, fast
from aims.audit.errors import AuditError
from aims.audit.people import PERSON
from aims.storage.write import Outcome, Record, Verdict

VERSION: Final = 1
MAX_ENTRY: Final = 16_384
MAX_BODY: Final = MAX_ENTRY - 256  # leaves room for the place: four numbers and the writer's name
MAX_CLAIM: Final = 256
PLACE: Final = ("seq", "writer", "writer_seq", "recorded")

Members = Mapping[str, Any]
Outcomes = Literal["success", "refused", "failed"]


class Fields(TypedDict, total=False):
    """The arguments of ``body``. ``time`` is in Unix seconds; mappings have the members that the schema lists.

    None is the same as leaving out, inside mappings too.
    """

    type: Required[str]
    outcome: Required[Outcomes]
    time: Required[float]
    id: Required[str]
    agent: Members | None
    principal: Members | None
    claimed: Mapping[str, str | None] | None
    chain: tuple[str, ...] | None
    client_id: str | None
    delegation: Members | None
    token: Members | None
    txn: str | None
    request_id: str | None
    trace_id: str | None
    span_id: str | None
    resource: str | None
    tool: str | None
    action: str | None
    args_digest: str | None
    decision: Members | None
    risk: Members | None
    posture: Members | None
    approval: Members | None
    cause: Members | None
    operator: Members | None
    node: str | None
    change: int | None
    prev_state_digest: str | None
    new_state_digest: str | None
    flood: Members | None
    log: Members | None
    details: Mapping[str, str | int | bool | None] | None


def body(**fields: Unpack[Fields]) -> bytes:
    """Return the canonical record without its place, at most 16,128 octets.

    Raises ``AuditError``: ``record_malformed`` (unknown type or member, wrong kind, too long), ``record_incomplete``
    (the type demands a member that is null), ``record_secret``, ``record_person``, ``record_too_large``,
    ``not_canonical``.
    """
    values: dict[str, Any] = {name: value for name, value in fields.items() if not _hollow(value)}
    if "claimed" in values:
        values["claimed"] = {name: inert(text) for name, text in _sorted(values["claimed"])}
    if "details" in values:
        values["details"] = dict(_sorted(values["details"]))
    moment = values.get("time")
    if (type(moment) is not float and type(moment) is not int) or not 0 <= moment < 2**43:
        raise AuditError("record_malformed", "time")
    values["time"] = int(moment * 1000)
    values["v"] = VERSION
    for name in _NULLABLE:
        values.setdefault(name)
    missing = _incomplete(values)
    if missing:
        raise AuditError("record_incomplete", missing)
    octets = _encoded(values)
    if len(octets) > MAX_BODY:
        raise AuditError("record_too_large", f"{len(octets)} octets")
    _refuse_secrets(octets.decode("utf-8"))
    return octets


def recorder(*, refuse: str, **fields: Unpack[Fields]) -> Record:
    """Return the ``record`` callback of a ``Write`` from the arguments of ``body`` for the case that it commits.

    A Write that loses to a stop, a replay, a used code or a conflict is recorded instead with type ``refuse``, outcome
    ``refused``, ``decision`` deny with reason ``storage.VERDICT``, and without what was not given: ``scope_given``,
    ``jti`` and ``exp`` of the token, and the digest of the new state. A Write that had changes gets the number of the
    last one. The first body is built at once, so that a bad record is an error before anything is committed.
    """
    kept: Any = dict(fields)
    committed = body(**kept)
    missing = _incomplete({**kept, "type": refuse, "decision": {}, "cause": {}})
    if missing:
        raise AuditError("record_incomplete", missing)

    def record(outcome: Outcome) -> bytes:
        if outcome.verdict is not Verdict.COMMITTED:
            return body(**_refused(kept, refuse, outcome))
        return body(**{**kept, "change": outcome.seq}) if outcome.seq else committed

    return record


def inert(text: str) -> str:
    """Make any text of a caller fit for a record: as it is, or by digest.

    What is empty, longer than 256 characters, not encodable, holds control characters, or looks like a token, a key
    or a person's identifier becomes ``sha256:`` and base64url.
    """
    if type(text) is not str:
        raise AuditError("record_malformed", "not text")
    if 0 < len(text) <= MAX_CLAIM and text.isprintable():
        try:
            _refuse_secrets(text)
        except AuditError:
            pass
        else:
            return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return "sha256:" + base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")


def placed(octets: bytes, *, seq: int, writer: str, writer_seq: int, recorded: int) -> bytes:
    """Return the entry of the log: the body with its place, canonical again.

    Raises ``AuditError``: ``record_malformed`` if the body is not a canonical object that is free of a place,
    ``record_too_large``.
    """
    try:
        value = decode(octets)
    except AuditError as error:
        raise AuditError("record_malformed", "the body is not canonical") from error
    if type(value) is not dict or any(name in value for name in PLACE):
        raise AuditError("record_malformed", "the body is no object, or has a place already")
    value.update(seq=seq, writer=writer, writer_seq=writer_seq, recorded=recorded)
    entry = fast(value)
    if len(entry) > MAX_ENTRY:
        raise AuditError("record_too_large", f"{len(entry)} octets")
    return entry


# --- compiled from the schema -----------------------------------------------------------------------------------------

SCHEMA: Final[dict[str, Any]] = json.loads(files("aims.audit").joinpath("record.schema.json").read_text("utf-8"))
TYPES: Final = frozenset(SCHEMA["properties"]["type"]["enum"])

# The seven demands, and the members of which one (for the decision: both) must not be null.
SEVEN: Final[Mapping[str, tuple[str, ...]]] = {
    "agent": ("agent",),
    "subject": ("principal",),
    "resource": ("resource", "tool"),
    "decision": ("action", "decision"),
    "correlation": ("txn", "request_id"),
    "posture": ("posture", "risk"),
    "cause": ("cause",),
}

REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    kind: tuple(part["$comment"] for part in SCHEMA["allOf"] if kind in part["if"]["properties"]["type"]["enum"])
    for kind in TYPES
}


def _field(name: str, schema: Mapping[str, Any], *, always: bool) -> Any:
    kind = _type(name, schema)
    return (name, kind | None) if always else (name, kind | None, None)


def _type(name: str, schema: Mapping[str, Any]) -> Any:
    """Turn the part of JSON Schema that the file uses into a type that msgspec checks and encodes.

    Structs have their fields in the order of canonical JSON, and leave out what is None.
    """
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:  # always: something or null
        return _type(name, schema["anyOf"][0])
    if "const" in schema or "enum" in schema:
        return Literal[tuple(schema.get("enum", [schema.get("const")]))]
    if "properties" in schema:
        properties, required = schema["properties"], schema["required"]
        fields = [_field(part, properties[part], always=part in required) for part in sorted(properties)]
        return msgspec.defstruct(name, fields, omit_defaults=True, forbid_unknown_fields=True, kw_only=True)
    return _KINDS[str(schema["type"])](name, schema)


def _string(schema: Mapping[str, Any]) -> Any:
    # "$" would let a final newline through.
    pattern = schema["pattern"].removesuffix("$") + r"\Z" if "pattern" in schema else None
    meta = msgspec.Meta(min_length=schema.get("minLength"), max_length=schema.get("maxLength"), pattern=pattern)
    return Annotated[str, meta]


_KINDS: Final[Mapping[str, Callable[[str, Mapping[str, Any]], Any]]] = {
    "string": lambda _, schema: _string(schema),
    "integer": lambda _, schema: Annotated[int, msgspec.Meta(ge=schema["minimum"], le=schema["maximum"])],
    "array": lambda name, schema: Annotated[
        list[_type(name, schema["items"])],  # type: ignore[misc]  # made at run time
        msgspec.Meta(min_length=1, max_length=schema["maxItems"]),
    ],
    "object": lambda name, schema: Annotated[
        dict[_string(schema["propertyNames"]), _type(name, schema["additionalProperties"])],  # type: ignore[misc]  # as above
        msgspec.Meta(min_length=1, max_length=schema["maxProperties"]),
    ],
    str(["string", "integer", "boolean"]): lambda _, schema: (
        _string(schema) | Annotated[int, msgspec.Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)] | bool
    ),
}

_BODY: Final = {name: part for name, part in SCHEMA["properties"].items() if name not in PLACE}
_RECORD: Final = _type("record", {**SCHEMA, "properties": _BODY})
_ENCODER: Final = msgspec.json.Encoder()


def _encoded(values: Mapping[str, Any]) -> bytes:
    try:
        return _ENCODER.encode(msgspec.convert(values, _RECORD))
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise AuditError("record_malformed", str(error)) from error


_NULLABLE: Final = tuple(name for name in SCHEMA["required"] if "anyOf" in SCHEMA["properties"][name])


def _hollow(value: Any) -> bool:
    """Nothing, or a mapping with nothing in it."""
    return value is None or (type(value) is dict and not any(part is not None for part in value.values()))


def _sorted(members: Mapping[str, Any]) -> list[tuple[str, Any]]:
    try:
        return sorted((name, value) for name, value in members.items() if value is not None)
    except (AttributeError, TypeError) as error:
        raise AuditError("record_malformed", "names of a free member") from error


def _incomplete(values: Mapping[str, Any]) -> str:
    """Name the demand that a record of this type does not meet, or return ""."""
    kind = values.get("type")
    demands = REQUIRED.get(kind) if type(kind) is str else None
    if demands is None:
        raise AuditError("record_malformed", "type")
    for demand in demands:
        present = [values.get(name) is not None for name in SEVEN[demand]]
        if not (all(present) if demand == "decision" else any(present)):
            return f"{kind} needs {demand}"
    return ""


# A literal is looked for first, so that a record without tokens is passed over quickly; no text takes quadratic time.
_RUNS: Final = re.compile(r"\.(?=[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16})")
_JOSE: Final = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8}")
_RUN: Final = re.compile(r"[A-Za-z0-9_-]{16}")


def _refuse_secrets(text: str) -> None:
    if "-----BEGIN " in text:
        raise AuditError("record_secret", "PEM")
    if PERSON.search(text):
        raise AuditError("record_person")
    _refuse_tokens(text)


def _refuse_tokens(text: str) -> None:
    """Refuse three runs of base64url joined by dots, each of 16 or more; and two if the first begins ``{"``."""
    if "eyJ" in text and _JOSE.search(text):
        raise AuditError("record_secret", "looks like a JOSE object")
    for dot in _RUNS.finditer(text):
        at = dot.start()
        if at >= 16 and _RUN.fullmatch(text, at - 16, at):
            raise AuditError("record_secret", "looks like a token")


def _refused(fields: Mapping[str, Any], refuse: str, outcome: Outcome) -> dict[str, Any]:
    verdict = outcome.verdict.value
    decision = {**(fields.get("decision") or {}), "effect": "deny", "reason": f"storage.{verdict}"}
    token = {
        name: value
        for name, value in (fields.get("token") or {}).items()
        if name not in ("scope_given", "jti", "exp") and value is not None
    }
    cause = {**(fields.get("cause") or {}), "reason": verdict, "stop_seq": outcome.stop_seq or None}
    if outcome.culprit:
        cause["event"] = inert(outcome.culprit)
    return {
        **fields,
        "type": refuse,
        "outcome": "refused",
        "decision": decision,
        "cause": cause,
        "token": token or None,
        "change": outcome.seq or None,
        "new_state_digest": None,
    }

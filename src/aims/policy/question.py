"""What the engine is asked, and what it answers: two frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, get_args

from aims.policy.errors import PolicyError

EntityType: TypeAlias = Literal["Agent", "Node", "Person", "Operator", "Resource"]
Action: TypeAlias = Literal["issue", "token", "exchange", "transact", "call", "stop", "administer"]
Fact: TypeAlias = str | int | bool | tuple[str, ...] | frozenset[str]

TYPES: Final = frozenset(get_args(EntityType))
ACTIONS: Final = frozenset(get_args(Action))

MAX_ID = 2048
MAX_FACTS = 64
MAX_STRING = 8192
MAX_LIST = 512
_LONG = 2**63  # Cedar's Long is a signed 64-bit number


def _string(value: str, limit: int, place: str) -> None:
    if len(value) > limit:
        raise PolicyError("question", f"{place} has more than {limit} characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PolicyError("question", f"{place} is not Unicode text") from error


def _facts(facts: Mapping[str, Fact], place: str) -> Mapping[str, Fact]:
    if len(facts) > MAX_FACTS:
        raise PolicyError("question", f"{place} has more than {MAX_FACTS} members")
    for name, value in facts.items():
        _string(name, MAX_ID, place)
        if isinstance(value, str):
            _string(value, MAX_STRING, f"{place}.{name}")
        elif isinstance(value, int):
            if not -_LONG <= value < _LONG:
                raise PolicyError("question", f"{place}.{name} is not a 64-bit number")
        elif isinstance(value, tuple | frozenset):
            if len(value) > MAX_LIST:
                raise PolicyError("question", f"{place}.{name} has more than {MAX_LIST} members")
            for member in value:
                if not isinstance(member, str):
                    raise PolicyError("question", f"{place}.{name} holds something else than text")
                _string(member, MAX_STRING, f"{place}.{name}")
        else:
            raise PolicyError("question", f"{place}.{name} is neither text, number, truth value nor a list of text")
    return MappingProxyType(dict(facts))


@dataclass(frozen=True, slots=True)
class Entity:
    """A principal or a resource: type, id (any text, compared octet by octet) and the attributes of the schema.

    Raises ``policy.question`` for an unknown type, an empty or overlong id, or a value that is no plain fact; a mapping
    is never a fact, so that no text of a request becomes a reference or a call inside Cedar.
    """

    type: EntityType
    id: str
    attributes: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise PolicyError("question", "unknown type of entity")
        if not self.id:
            raise PolicyError("question", f"the id of {self.type} is empty")
        _string(self.id, MAX_ID, f"the id of {self.type}")
        object.__setattr__(self, "attributes", _facts(self.attributes, self.type))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May ``principal`` do ``action`` to ``resource``, given the facts of this request in ``context``?"""

    principal: Entity
    action: Action
    resource: Entity
    context: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise PolicyError("question", "unknown action")
        object.__setattr__(self, "context", _facts(self.context, "context"))


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, with what it rests on.

    ``reason`` is "" for an allowed question, else ``denied``, ``forbidden``, ``no_rule`` or ``evaluation``; ``rules``
    are the ids of the permits that allowed it, the forbids that forbade it, or the rules that failed to evaluate;
    ``policy`` is the version of the bundle. ``explanation`` may be shown to anybody; ``detail`` is for the log.
    """

    allow: bool
    reason: str
    rules: tuple[str, ...]
    policy: str
    explanation: str
    detail: str = field(default="", repr=False)

    @property
    def code(self) -> str:
        """``policy.allowed``, or the stable code of the refusal."""
        return f"policy.{self.reason or 'allowed'}"

    def require(self) -> None:
        """Raise ``PolicyError`` with this decision's reason unless it allows."""
        if not self.allow:
            raise PolicyError(self.reason, self.explanation)

"""Why no Txn-Token was issued, or one was not enough, and the OAuth code that each reason has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from aims.authorization.errors import AuthorizationError
from aims.errors import Reason, reasons

_NEW: Final = "Ask the Txn-Token service for a new one."
_POLICY: Final = "See the policy's table of purposes."


class TransactionError(AuthorizationError):
    """A Txn-Token was not issued or is not accepted. Its codes share the layer of ``AuthorizationError``."""

    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        # asking for one
        txn_kind=(
            "This workload may not ask with a subject token of this type.",
            "Send an access token.",
            "unauthorized_client",
        ),
        txn_type=(
            "A token of this type is never the subject of a transaction.",
            "Send an access token.",
            "invalid_request",
        ),
        txn_policy=("The policy does not let this workload ask for this purpose.", _POLICY, "unauthorized_client"),
        txn_target=("The audience is not this trust domain.", "Send its name, and nothing else.", "invalid_target"),
        txn_scope=("The purpose is unknown, or the subject token does not allow it.", _POLICY, "invalid_scope"),
        txn_details=("The request details do not fit the purpose.", _POLICY, "invalid_request"),
        txn_json=(
            "A JSON parameter is not one bounded object with each member once.",
            "Send one JSON object of at most 8 KiB and depth 8, each member once.",
            "invalid_request",
        ),
        txn_subject=("The subject token is not a live token of this trust domain.", _NEW, "invalid_request"),
        txn_wider=(
            "A replacement may only hold less than its predecessor.",
            "Narrow it, or begin anew.",
            "invalid_scope",
        ),
        txn_changed=(
            "A replacement may not change the facts of its transaction.",
            "Begin a new one.",
            "invalid_request",
        ),
        txn_replacements=("The transaction has been replaced too often.", "Begin a new one.", "invalid_request"),
        txn_loop=(
            "The workload has asked in this transaction before.",
            "Use the token that it had.",
            "invalid_request",
        ),
        txn_over=("The transaction has reached its end.", "Begin a new one.", "invalid_request"),
        # reading one
        txn_header=(
            "The request does not carry exactly one Txn-Token.",
            "Send one field with one token.",
            "invalid_request",
        ),
        txn_missing=("The request carries no Txn-Token.", "Send the one that you were called with.", "invalid_token"),
        txn_malformed=("The Txn-Token is malformed.", _NEW, "invalid_token"),
        txn_typ=("The token is not a Txn-Token.", "Its typ is txntoken+jwt.", "invalid_token"),
        txn_signature=("The Txn-Token does not verify under the keys of its service.", _NEW, "invalid_token"),
        txn_audience=("The Txn-Token is for another trust domain.", "It never leaves its own.", "invalid_token"),
        txn_issuer=("The Txn-Token is from another service than this domain's.", _NEW, "invalid_token"),
        txn_expired=("The Txn-Token has expired, or is not valid yet.", _NEW, "invalid_token"),
        txn_lifetime=("The Txn-Token lives longer than a transaction may.", _NEW, "invalid_token"),
        txn_claims=("The Txn-Token lacks a claim, or one is malformed.", _NEW, "invalid_token"),
        txn_old=("The token has the shape of an earlier draft.", "Its issuer has to be updated.", "invalid_token"),
        # using one
        txn_purpose=(
            "The Txn-Token's purpose does not cover this operation.",
            "Ask for that purpose.",
            "insufficient_scope",
        ),
        txn_facts=(
            "The request differs from what the Txn-Token says.",
            "Send what was approved.",
            "insufficient_scope",
        ),
        txn_caller=("This caller may not call this operation.", "See the operation's callers.", "insufficient_scope"),
        txn_requester=("The Txn-Token was asked for by a workload that may not.", _POLICY, "insufficient_scope"),
        txn_used=("This operation was done in this transaction already.", "Begin a new one.", "insufficient_scope"),
    )

"""The audit branch of the error tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aims.errors import AimsError, Reason, reasons


class AuditError(AimsError):
    """Something in the record, the log or its position is not as it must be."""

    layer: ClassVar[str] = "audit"
    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        not_canonical=(
            "A value has no place in canonical JSON.",
            "Use ASCII member names, text, integers below 2^53, true, false, null, arrays and objects; never floats.",
        ),
        record_malformed=(
            "An audit record does not follow the schema.",
            "Compare the members with record.schema.json.",
        ),
        record_incomplete=(
            "An audit record lacks a member that its type must have.",
            "The schema says per type which of the seven members must not be null.",
        ),
        record_too_large=("An audit record is too large.", "Give larger parts by digest."),
        record_secret=("An audit record contains what looks like a token or a private key.", "Give a digest instead."),
        record_person=(
            "An audit record names a person in clear.",
            "Put the person's commitment (aims.audit.people) into the record.",
        ),
        note_malformed=(
            "A signed note or checkpoint is not in its one exact form.",
            "Take the file as its log published it, without changing a line.",
        ),
        note_key=("A verification key is not in the form name+hash+base64.", "Copy the whole line."),
        note_signer=("The note carries no signature by the pinned key.", "Check which key signs this log."),
        note_signature=(
            "A signature over the note does not verify.",
            "Trust nothing below it: fetch it again, and ask the operator of the log.",
        ),
        proof_malformed=(
            "Tree size, index and proof do not fit together.",
            "Fetch record, proof and checkpoint again, all of the same tree.",
        ),
        tile_missing=("A file of the log is missing.", "Restore the log folder; the database cannot replace it."),
        tile_malformed=("A file of the log has not the form that its place demands.", "Run the log verifier."),
        log_ahead=(
            "The published checkpoint is ahead of the database: the database is older than the log.",
            "A backup was restored. Restore a newer one, or begin a new log under a new origin; never overwrite.",
        ),
        log_behind=(
            "The log folder is older than what the database has published.",
            "A backup of the folder was restored. Restore a newer one, or begin a new log under a new origin.",
        ),
        log_mismatch=(
            "The files of the log do not give the root that its checkpoint signs.",
            "Run the log verifier; it names the first bad entry.",
        ),
        log_foreign=(
            "The log folder or the database belongs to another log.",
            "Check origin and key; each log has its own folder.",
        ),
        assignment_lost=(
            "An entry that has its number is no longer in the database.",
            "Rows of the outbox were removed before they were published. Restore the database.",
        ),
        sequencer_displaced=(
            "Another process numbers the entries of this log.",
            "Only one supervisor may run the sequencer.",
        ),
        signer_mismatch=(
            "The signer and the log's verification key do not belong together.",
            "Sign with the key that the log was begun with, or begin a new log.",
        ),
        person_unknown=(
            "No commitment is stored for this person.",
            "The person was never here or was erased: check the identifier.",
        ),
    )

"""What provisioning refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aims.errors import AimsError, Reason, reasons

_ASK = "Ask the administrator of this trust domain."


class ProvisioningError(AimsError):
    """A registration, a join or a credential was refused."""

    layer: ClassVar[str] = "provisioning"
    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        # registry
        name_malformed=(
            "This is not a name.",
            "Use 1 to 63 of a-z, 0-9, '.', '_' and '-', with a letter or digit at both ends.",
        ),
        name_taken=(
            "The name or identifier is in use, or was once.",
            "Choose another: an identifier is never given a second time.",
        ),
        name_reserved=("The name or identifier is kept for the trust domain itself.", "Choose another."),
        owner_unknown=(
            "Nobody of that name is registered as an owner.",
            "Register the owner first: aims owner register NAME",
        ),
        owner_malformed=(
            "The owner's kind or contact cannot be.",
            "Kind is person or team; a contact has 1 to 256 characters.",
        ),
        identity_unknown=("No agent or service of that name is registered.", "See `aims agent list`."),
        identity_retired=("The agent or service is retired.", "Register a new one; retirement is for good."),
        identity_suspended=("The agent or service is suspended.", "Its owner can resume it."),
        entry_unknown=("There is no such entry.", "See `aims entry list`."),
        entry_selectors=(
            "The entry names nothing that tells its workload apart.",
            "Add a launch selector, or a unix:uid that no other entry uses.",
        ),
        entry_selector_type=("Nothing here attests that type of selector.", "Use launch and unix selectors."),
        entry_uid_shared=(
            "Another entry uses that uid.",
            "Add a launch selector, or give the workload a uid of its own.",
        ),
        entry_overlap=(
            "A workload could match this entry and one of another owner.",
            "Make the selectors tell the two apart.",
        ),
        entry_nodes=("The entry names no node, or too many.", "Name 1 to 256 nodes or selectors of nodes."),
        entry_lifetime=("A lifetime is out of range.", "X.509: 10 s to 24 h; JWT: 10 s to 10 min; 0 for the policy's."),
        entry_hint=("The hint is too long or does not print.", "Use at most 128 printable characters."),
        launch_uids=(
            "A launch needs 1 to 64 uids that may ask for it, in order.",
            "Name the uid of the person who runs it.",
        ),
        changed=("Somebody else changed this meanwhile.", "Look at it again and repeat the command."),
        # nodes
        node_unknown=("No node of that name has joined.", "Make a join token for it."),
        node_banned=("The node is banned.", "A ban is for good; join under a new id."),
        node_not_bound=("The entry may not be issued on this node.", "Name the node in the entry."),
        join_token_malformed=("This is not a join token.", "Make a new one with `aims node token`."),
        join_token_lifetime=("A join token lives at most an hour.", "Ask for 1 to 3600 seconds."),
        join_refused=(
            "The join token is unknown, expired, used, or for another node.",
            "Make a new one for this node id; it works once.",
        ),
        # issuance
        request_malformed=("The body of the request is not what the node protocol says.", "Update the node."),
        version=(
            "This server speaks version 1 of the node protocol.",
            "Install the same version of AIMS on node and server.",
        ),
        behind=(
            "This server process has not heard of changes for too long.",
            "Ask again; see `aims doctor` if it goes on.",
        ),
        busy=("Too many nodes try to join at the moment.", "Try again in a second."),
        peer_not_a_node=("Only a node may ask this.", "Call with a node's own X509-SVID."),
        csr_malformed=("The certificate request or its key cannot be used.", "Send PKCS#10 with a P-256 or P-384 key."),
        proof_key=("The proof key cannot be used.", "Send a public P-256 JWK that is not the key of the certificate."),
        instance_malformed=("The instance is not one of this node.", "It is the node's id, a colon and 26 characters."),
        evidence_malformed=("The evidence is not what the node protocol says.", "Update the node."),
        evidence_stale=("The evidence is not fresh.", "Collect it anew for each request, and check the clocks."),
        evidence_mismatch=(
            "The workload is not what the entry demands.",
            "Compare the entry's selectors with the evidence.",
        ),
        posture_unknown=("The posture of the workload is unknown.", "Nothing is issued without a posture."),
        policy_refused=("The policy does not allow this credential.", _ASK),
        lifetime=(
            "No lifetime is left within the limits.",
            "Look at the entry, the policy and the authority's certificate.",
        ),
        audiences=(
            "The audiences are missing, doubled, too many or too long.",
            "Ask for 1 to 8 of at most 2048 characters.",
        ),
        stopped=("The agent, node or instance was stopped.", "Its owner can tell why."),
        # authority
        authority_empty=("The trust domain has no signing key of that purpose.", "Start the server once."),
        authority_slot=("The key is not in the slot that this step needs.", "Another rotation was faster."),
        store_refused=("The store did not accept the change.", "Try again; the log of the server has the cause."),
    )

"""What the policy pillar refuses, with its reasons."""

from __future__ import annotations

from typing import ClassVar

from aims.errors import AimsError, reasons


class PolicyError(AimsError):
    """A bundle that must not be activated, a decision that is no, or a table that has no row for the question."""

    layer: ClassVar[str] = "policy"
    reasons = reasons(
        # the decision
        denied=(
            "No rule of the policy allows this.",
            "The rules that could have allowed it are named; compare their conditions with the facts of the request.",
        ),
        forbidden=("A rule of the policy forbids this.", "The rule is named; a permit cannot outweigh it."),
        no_rule=("The policy has no rule for this action.", "Add a permit for the action to the policy bundle."),
        evaluation=(
            "The policy could not be evaluated for this request, so it is refused.",
            "Compare the attributes and the context of the request with policy.cedarschema.",
        ),
        question=(
            "The question to the policy is not well formed.",
            "A name or a fact is empty, too long or of the wrong type.",
        ),
        # the bundle
        changed=("Another policy came into force at the same moment.", "Look at it, then try again."),
        inactive=(
            "No policy is in force yet, so nothing is decided.",
            "Wait for the server's start to end, or apply one.",
        ),
        bundle_file=(
            "The policy bundle holds a file that does not belong there.",
            "A bundle is policy.cedarschema, tables.toml and *.cedar as plain files, nothing else.",
        ),
        bundle_missing=(
            "The policy bundle lacks a file.",
            "policy.cedarschema, tables.toml and one *.cedar are required.",
        ),
        bundle_size=(
            "The policy bundle is too large or nested too deeply.",
            "The limits are listed in docs/policy.md.",
        ),
        bundle_encoding=(
            "A file of the policy bundle is not UTF-8 text.",
            "Save it as UTF-8 without control characters.",
        ),
        bundle_format=("The stored form of the policy bundle is damaged.", "Load the bundle from its folder again."),
        schema=("The schema of the policy bundle cannot be read.", "The detail names the place."),
        empty=("The policy bundle has no rule.", "An empty policy would refuse everything; it is not activated."),
        rule_syntax=("A policy file cannot be parsed.", "The detail names the file and the place."),
        rule_invalid=("A rule does not fit the schema.", "The detail names the rule and what the schema says."),
        rule_id=(
            "A rule has no usable @id.",
            "Every rule needs its own @id of lower-case letters, digits, '_' and '-', used once in the bundle.",
        ),
        rule_template=("A policy file holds a template.", "Write the rule out; templates are not linked by AIMS."),
        tables_syntax=("tables.toml is not valid TOML.", "The detail names the line."),
        tables_row=("A row of tables.toml is not valid.", "The detail names the table, the row and the column."),
        tables_twice=("Two rows of tables.toml claim the same thing.", "The detail names both."),
        tables_unknown=("A row of tables.toml names something that no row defines.", "The detail names both."),
        # the lookups
        identifier=(
            "This identifier may not be registered.",
            "Add a row to the table identifiers, or choose another name.",
        ),
        posture=("The posture of the caller is not in the policy.", "Add a row to the table postures."),
        resource=("The resource is not in the policy.", "Add a row to the table resources."),
        ceiling=("This is wider than what the policy allows the agent.", "The row that is lowest is named."),
        delegation=("An agent in this posture may not delegate.", "The row of the table postures is named."),
        lifetime=("The policy gives this kind of credential no lifetime.", "Add a row to the table lifetimes."),
        purpose=("The purpose is not in the policy, or the token's scopes do not allow it.", "See the table purposes."),
        details=("The request details do not fit the purpose.", "The detail names the member."),
        transmitter=("The transmitter may not say this.", "See the table transmitters."),
    )

"""What a command itself can refuse; everything else comes from the layer that refused."""

from __future__ import annotations

from aims.errors import AimsError, reasons


class CliError(AimsError):
    """A command could not be carried out."""

    layer = "cli"
    reasons = reasons(
        argument=("An argument is not of the form that the command takes.", "See the command's --help."),
        unknown=("Nothing of that name is known.", "Check the spelling; a code looks like `layer.reason`."),
        refused=("The server refused.", "The lines above say why; `aims explain CODE` says more."),
        file=("A file cannot be read.", "Check its path and mode."),
        platform=("AIMS runs on Linux.", "Elsewhere only the verifying parts of the SDK work."),
    )

"""What can go wrong with a key or a key store."""

from __future__ import annotations

from typing import ClassVar

from aims.errors import AimsError, reasons


class KeyStoreError(AimsError):
    """A key or key store was refused."""

    layer: ClassVar[str] = "keys"
    reasons = reasons(
        uri=("The key store's address is not usable.", "Write memory: or file:/absolute/folder."),
        scheme=("No key store answers to this scheme.", "Known schemes are memory: and file:."),
        permissions=(
            "A key folder or file is open to other users.",
            "Run chmod 700 on the folder and 600 on its files.",
        ),
        owner=("A key folder or file belongs to another user.", "Run under the owner's account, or chown it."),
        symlink=("A key folder or file is a symbolic link.", "Name the real folder and put real files into it."),
        not_regular=("A key folder or file is of the wrong kind.", "Remove what stands at this place."),
        unavailable=("The key store cannot be read or written now.", "Look at the disk: space, mount, rights."),
        missing=("The key is not in the store.", "Check the store's address, or restore the key from its backup."),
        exists=(
            "The key is in the store already; keys are never overwritten.",
            "Use the key that is there, or give the new one a new name.",
        ),
        malformed=("A stored key is damaged.", "Restore the file from a backup, or remove it and rotate."),
        purpose=("The key was made for another purpose.", "Each purpose has keys of its own."),
        algorithm=("The purpose does not allow this algorithm.", "Make the key with an algorithm of its purpose."),
        kid=("The key identifier is not one of ours.", "Give the identifier as AIMS wrote it."),
        changed=("Another process made the purpose's key in the same moment.", "Start again."),
        not_local=("The key is not in this process and cannot sign without waiting.", "Await its signature instead."),
    )

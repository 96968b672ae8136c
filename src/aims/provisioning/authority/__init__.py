"""The authority: the keys with which the trust domain signs, each for one purpose.

    model        keys in slots, and when which step is due (pure)
    store        one table and the number of the bundle
    service      first keys, prepare, activate, prune: each a Plan
    signing      the authority of this process: current keys loaded, ready to sign
    issuer_keys  the keys of one purpose as an issuer holds them
    keeper       the background task that takes the steps, and the only committer here
    local        what this server shows on its own listeners

A key is *next* before it is *current*: published first, signing later. It stays published after it stopped signing,
until the last thing that it signed has ended. Every step changes the SPIFFE bundle and raises its number, and the
number is also the guard: of two processes that take the same step one loses.
"""

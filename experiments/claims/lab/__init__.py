"""Published claims, re-tested: the protocol that all share, the small model that most are tested
on, and the ledger of results.
"""

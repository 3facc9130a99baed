"""Studies on storage that is reached by an address, such as `s3://bucket/studies`.

Every machine that works on such a study has a working copy of what it needs in its cache. What is
written there is sent to the storage by a thread; the storage alone is what a study goes on from.
"""

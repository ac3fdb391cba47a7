"""Archives of rows and files that maintenance removes: compressed Parquet with manifest and checksums, restorable.

They lie in a folder or an object store; whatever domain removes something hands it here first. What does not belong
here: what is removed, and when.
"""

"""The message formats of `schema_version` 1: reading them, and building them for producers."""

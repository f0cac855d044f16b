"""The service around `cl_engine`: sources, state, sessions, serving."""

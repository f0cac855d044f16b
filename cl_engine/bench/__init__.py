"""Compare the methods on anybody's data: `python -m cl_engine.bench`, or `accrete bench`."""

"""Continual learning on a frozen backbone: SGDS, ExSSNeT, SupSup and the baselines they are judged by.

A library without any I/O beyond reading and writing generations and assets; usable in a notebook.
"""

__version__ = "0.1.0"

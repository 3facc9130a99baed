"""The Python API: run a study, open one, look at its trials, export its model.

The command `tune` is written on these functions. They are imported from `tuner` itself.
"""

"""Data as trials read them: planned, preprocessed, split, cached."""

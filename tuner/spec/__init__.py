"""A search space file: YAML in, a validated `StudySpec` out."""

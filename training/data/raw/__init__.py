"""Data as users have them: folders, files, headers."""

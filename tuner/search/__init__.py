"""Searchers propose configurations; policies decide which trials go on."""

"""What a study is and knows: its folder, its spec and its record."""

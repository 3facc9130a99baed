"""What decides: which configuration comes next, and which trial goes on."""

"""Logs and exports in forms of their own, one module for each family of tools that write them."""

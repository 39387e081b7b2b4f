"""What engines that are processes of their own have in common: starting, watching, asking and replacing them.

This room knows no engine by name. A command tells how to start one, and an `EngineInterface` talks to it.
"""

"""The SMTP dialogue as a pure state machine: bytes in, events out, bytes back.

Nothing in this room opens a socket, runs a loop, reads a clock or writes a log. It can be driven by hand, octet by
octet, and that is how it is tested.
"""

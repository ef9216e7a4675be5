"""Conditions, a file each: what a control's batch key holds, its encoder, its dropout and where it enters the network.

May import `networks` and what lies below it; `models` and everything above may import it. A new control starts here.
"""
